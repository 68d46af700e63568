// A ROS 2 node: subscribes to `image`, publishes what the newest picture shows on `caption`, and answers a question on
// `question` about it. In a package's CMakeLists.txt: find_package(blip2rt) and target_link_libraries(... blip2rt::blip2rt).
#include <blip2rt.hpp>
#include <memory>
#include <rclcpp/rclcpp.hpp>
#include <sensor_msgs/msg/image.hpp>
#include <std_msgs/msg/string.hpp>
#include <string>

class Captioner : public rclcpp::Node {
 public:
  Captioner() : Node("blip2rt"), model_(blip2rt::Options{{"threads", "2"}}) {
    using std::placeholders::_1;
    const auto newest = rclcpp::QoS(1).best_effort();  // pictures that come meanwhile are dropped
    captions_ = create_publisher<std_msgs::msg::String>("caption", 10);
    answers_ = create_publisher<std_msgs::msg::String>("answer", 10);
    images_ = create_subscription<sensor_msgs::msg::Image>("image", newest, std::bind(&Captioner::see, this, _1));
    questions_ = create_subscription<std_msgs::msg::String>("question", 10, std::bind(&Captioner::answer, this, _1));
  }

 private:
  void see(const sensor_msgs::msg::Image::ConstSharedPtr& image) {
    const bool has_alpha = image->encoding == "rgba8" || image->encoding == "bgra8";
    const bool is_bgr = image->encoding == "bgr8" || image->encoding == "bgra8";
    if (!has_alpha && !is_bgr && image->encoding != "rgb8") {
      RCLCPP_ERROR(get_logger(), "cannot read %s: publish rgb8 or bgr8", image->encoding.c_str());
      return;
    }
    const auto format = static_cast<blip2rt_format>((has_alpha ? BLIP2RT_RGBA : BLIP2RT_RGB) + (is_bgr ? 1 : 0));
    try {
      features_ = std::make_unique<blip2rt::Features>(model_.encode(
          model_.image_pixels(image->data.data(), image->width, image->height, format, image->step)));
      publish(*captions_, model_.caption(*features_).front().text);
    } catch (const blip2rt::Error& error) {
      RCLCPP_ERROR(get_logger(), "%s", error.what());
    }
  }

  void answer(const std_msgs::msg::String::ConstSharedPtr& question) {
    if (features_ == nullptr) return;
    try {
      publish(*answers_, model_.ask(*features_, question->data).front().text);
    } catch (const blip2rt::Error& error) {
      RCLCPP_ERROR(get_logger(), "%s", error.what());
    }
  }

  static void publish(rclcpp::Publisher<std_msgs::msg::String>& publisher, std::string text) {
    std_msgs::msg::String message;
    message.data = std::move(text);
    publisher.publish(message);
  }

  const blip2rt::Model model_;
  std::unique_ptr<blip2rt::Features> features_;  // of the newest picture
  rclcpp::Publisher<std_msgs::msg::String>::SharedPtr captions_, answers_;
  rclcpp::Subscription<sensor_msgs::msg::Image>::SharedPtr images_;
  rclcpp::Subscription<std_msgs::msg::String>::SharedPtr questions_;
};

int main(int argc, char** argv) {
  rclcpp::init(argc, argv);
  rclcpp::spin(std::make_shared<Captioner>());
  rclcpp::shutdown();
}
