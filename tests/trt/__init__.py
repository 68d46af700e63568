"""The backend trt, on a stand-in of driver and TensorRT."""
