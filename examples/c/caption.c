/* Caption a picture and answer a question about it: cc caption.c $(pkg-config --cflags --libs blip2rt) */
#include <blip2rt.h>
#include <stdio.h>

/* Prints the answer word by word. */
static int print_piece(const char* piece, void* user) {
  (void)user;
  fputs(piece, stdout);
  fflush(stdout);
  return 0; /* anything else ends the answer */
}

static int fail(blip2rt_error* error) {
  size_t i;
  for (i = 0; i < blip2rt_error_count(error); ++i) fprintf(stderr, "%s\n", blip2rt_error_fault(error, i));
  blip2rt_error_free(error);
  return 1;
}

int main(int argc, char** argv) {
  const char* const three[] = {"num_captions", "3", NULL};
  const char* const greedy[] = {"num_beams", "1", NULL}; /* words come as they are chosen */
  blip2rt_model* model = NULL;
  blip2rt_image* image = NULL;
  blip2rt_features* features = NULL;
  blip2rt_texts *captions = NULL, *answer = NULL;
  blip2rt_error* error = NULL;
  size_t i;
  int status = 0;
  if (argc != 3) return fprintf(stderr, "usage: %s IMAGE QUESTION\n", argv[0]), 2;
  if (blip2rt_load(NULL, NULL, &model, &error) != BLIP2RT_OK ||
      blip2rt_image_file(model, argv[1], &image, &error) != BLIP2RT_OK ||
      blip2rt_encode(model, image, &features, &error) != BLIP2RT_OK ||
      blip2rt_caption(model, features, NULL, three, NULL, NULL, &captions, &error) != BLIP2RT_OK) {
    status = fail(error);
  } else {
    for (i = 0; i < blip2rt_texts_count(captions); ++i) {
      printf("%6.2f  %s\n", blip2rt_texts_score(captions, i), blip2rt_texts_get(captions, i));
    }
    if (blip2rt_ask(model, features, argv[2], greedy, print_piece, NULL, &answer, &error) != BLIP2RT_OK) {
      status = fail(error);
    }
    puts("");
  }
  blip2rt_texts_free(answer); /* NULL is fine */
  blip2rt_texts_free(captions);
  blip2rt_features_free(features);
  blip2rt_image_free(image);
  blip2rt_model_free(model);
  return status;
}
