// A callback for blip2rt_caption and its like that calls JavaScript without making a function of it.
#include <blip2rt.h>
#include <emscripten.h>

// Module.onPiece(user, piece) returns true to end the text.
EM_JS(int, web_on_piece, (const char* piece, void* user),
      { return Module["onPiece"](user, UTF8ToString(piece)) ? 1 : 0; });

extern "C" blip2rt_callback web_callback(void) {
  return [](const char* piece, void* user) { return web_on_piece(piece, user); };
}
