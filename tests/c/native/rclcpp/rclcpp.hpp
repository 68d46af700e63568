// The part of ROS 2 that the example uses, to compile it where ROS is not installed.
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace sensor_msgs::msg {
struct Image {
  using ConstSharedPtr = std::shared_ptr<const Image>;
  uint32_t height, width, step;
  std::string encoding;
  std::vector<uint8_t> data;
};
}  // namespace sensor_msgs::msg

namespace std_msgs::msg {
struct String {
  using ConstSharedPtr = std::shared_ptr<const String>;
  std::string data;
};
}  // namespace std_msgs::msg

#define RCLCPP_ERROR(...) rclcpp::log_error(__VA_ARGS__)

namespace rclcpp {
template <class... Arguments>
void log_error(const Arguments&...) {}

struct QoS {
  QoS(size_t) {}
  QoS& best_effort() { return *this; }
};
template <class Message>
struct Publisher {
  using SharedPtr = std::shared_ptr<Publisher>;
  void publish(const Message&) {}
};
template <class Message>
struct Subscription {
  using SharedPtr = std::shared_ptr<Subscription>;
};
struct Node {
  Node(const std::string&) {}
  int get_logger() const { return 0; }
  template <class Message>
  std::shared_ptr<Publisher<Message>> create_publisher(const std::string&, QoS) {
    return nullptr;
  }
  template <class Message>
  std::shared_ptr<Subscription<Message>> create_subscription(
      const std::string&, QoS, std::function<void(typename Message::ConstSharedPtr)>) {
    return nullptr;
  }
};
inline void init(int, char**) {}
inline void spin(const std::shared_ptr<Node>&) {}
inline void shutdown() {}
}  // namespace rclcpp
