// The part of ROS 2's rclcpp that the example uses, to compile it where ROS is not installed.
#pragma once

#include <functional>
#include <memory>
#include <string>

namespace rclcpp {

struct Logger {};

template <class... Arguments>
void log_error(const Logger&, const char*, const Arguments&...) {}
#define RCLCPP_ERROR(...) rclcpp::log_error(__VA_ARGS__)

struct QoS {
  explicit QoS(size_t) {}
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
  std::function<void(typename Message::ConstSharedPtr)> callback;
};

class Node {
 public:
  explicit Node(const std::string&) {}
  Logger get_logger() const { return {}; }
  template <class Message>
  std::shared_ptr<Publisher<Message>> create_publisher(const std::string&, size_t) {
    return std::make_shared<Publisher<Message>>();
  }
  template <class Message, class Callback>
  std::shared_ptr<Subscription<Message>> create_subscription(const std::string&, const QoS&, Callback callback) {
    return std::make_shared<Subscription<Message>>(Subscription<Message>{callback});
  }
  template <class Message, class Callback>
  std::shared_ptr<Subscription<Message>> create_subscription(const std::string& topic, size_t, Callback callback) {
    return create_subscription<Message>(topic, QoS(1), callback);
  }
};

inline void init(int, char**) {}
inline void spin(const std::shared_ptr<Node>&) {}
inline void shutdown() {}

}  // namespace rclcpp
