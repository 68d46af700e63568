// The fields of ROS 2's sensor_msgs/Image that the example uses.
#pragma once

#include <cstdint>
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
