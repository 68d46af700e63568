// Caption what a camera sees, once a second: c++ -std=c++17 camera.cpp $(pkg-config --cflags --libs blip2rt)
//
// The camera sends JPEG pictures (Video4Linux), which the library decodes itself.
#include <fcntl.h>
#include <linux/videodev2.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <blip2rt.hpp>
#include <cerrno>
#include <chrono>
#include <iostream>
#include <system_error>
#include <thread>

class Camera {
 public:
  Camera(const char* device, unsigned width, unsigned height) : file_(open(device, O_RDWR)) {
    if (file_ < 0) throw std::system_error(errno, std::generic_category(), device);
    v4l2_format format{};
    format.type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    format.fmt.pix.width = width;
    format.fmt.pix.height = height;
    format.fmt.pix.pixelformat = V4L2_PIX_FMT_MJPEG;
    control(VIDIOC_S_FMT, &format);
    v4l2_requestbuffers request{};
    request.count = 1;  // the newest picture
    request.type = format.type;
    request.memory = V4L2_MEMORY_MMAP;
    control(VIDIOC_REQBUFS, &request);
    buffer_.type = format.type;
    buffer_.memory = V4L2_MEMORY_MMAP;
    control(VIDIOC_QUERYBUF, &buffer_);
    data_ = mmap(nullptr, buffer_.length, PROT_READ, MAP_SHARED, file_, buffer_.m.offset);
    if (data_ == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
    int type = V4L2_BUF_TYPE_VIDEO_CAPTURE;
    control(VIDIOC_STREAMON, &type);
  }
  ~Camera() { close(file_); }
  Camera(const Camera&) = delete;
  Camera& operator=(const Camera&) = delete;

  // The bytes of a JPEG, until the next call.
  std::string_view picture() {
    control(VIDIOC_QBUF, &buffer_);
    control(VIDIOC_DQBUF, &buffer_);
    return {static_cast<const char*>(data_), buffer_.bytesused};
  }

 private:
  void control(unsigned long request, void* argument) const {
    if (ioctl(file_, request, argument) < 0) throw std::system_error(errno, std::generic_category(), "the camera");
  }

  int file_;
  v4l2_buffer buffer_{};
  void* data_ = nullptr;
};

int main(int argc, char** argv) {
  try {
    const blip2rt::Model model;
    Camera camera(argc > 1 ? argv[1] : "/dev/video0", 640, 480);
    for (;;) {
      try {
        const blip2rt::Features features = model.encode(model.image_bytes(camera.picture()));
        std::cout << model.caption(features).front().text << std::endl;
      } catch (const blip2rt::Error& error) {  // a damaged picture, say
        std::cerr << error.what() << '\n';
      }
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
  } catch (const std::exception& error) {
    std::cerr << "camera: " << error.what() << '\n';
    return 1;
  }
}
