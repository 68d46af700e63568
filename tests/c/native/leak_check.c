/* Captions, asks, matches and fails, again and again: leak_check FOLDER ONNXRUNTIME IMAGE COUNT. Run with LeakSanitizer
 * or valgrind. Prints the resident memory after a tenth of the rounds and at the end, in KiB. */
#include <blip2rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static long resident(void) {
  long pages = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1) exit(3);
  fclose(file);
  return pages * 4;
}

static void expect(int holds, const char* what, blip2rt_error* error) {
  if (holds) return;
  fprintf(stderr, "%s: %s\n", what, error == NULL ? "?" : blip2rt_error_message(error));
  exit(1);
}

static int stop(const char* piece, void* user) {
  (void)piece;
  return ++*(int*)user == 2;
}

int main(int argc, char** argv) {
  const char* load[] = {"threads", "1", "onnxruntime", NULL, NULL};
  const char* const options[] = {"num_captions", "2", "stop_strings", "dog", NULL};
  const char* const wrong[] = {"beams", "2", "num_beams", "0", NULL};
  const char* const greedy[] = {"num_beams", "1", NULL};
  blip2rt_model* model;
  blip2rt_error* error;
  int round, rounds;
  if (argc != 5) return 2;
  load[3] = argv[2];
  rounds = atoi(argv[4]);
  expect(blip2rt_load(argv[1], load, &model, &error) == BLIP2RT_OK, "load", error);
  for (round = 0; round < rounds; ++round) {
    blip2rt_image* image;
    blip2rt_features* features;
    blip2rt_texts* texts;
    blip2rt_chat* chat;
    double score;
    int calls = 0;
    expect(blip2rt_image_file(model, argv[3], &image, &error) == BLIP2RT_OK, "image", error);
    expect(blip2rt_encode(model, image, &features, &error) == BLIP2RT_OK, "encode", error);
    blip2rt_image_free(image);
    expect(blip2rt_caption(model, features, NULL, options, NULL, NULL, &texts, &error) == BLIP2RT_OK, "caption", error);
    blip2rt_texts_free(texts);
    expect(blip2rt_ask(model, features, "what?", greedy, stop, &calls, &texts, &error) == BLIP2RT_OK, "ask", error);
    blip2rt_texts_free(texts);
    expect(blip2rt_caption(model, features, NULL, wrong, NULL, NULL, &texts, &error) != BLIP2RT_OK, "wrong", error);
    expect(texts == NULL && error != NULL && blip2rt_error_count(error) == 2, "faults", error);
    blip2rt_error_free(error);
    expect(blip2rt_match(model, features, "a dog", &score, NULL, NULL, &error) == BLIP2RT_OK, "match", error);
    expect(blip2rt_chat_begin(model, features, greedy, &chat, &error) == BLIP2RT_OK, "chat", error);
    blip2rt_features_free(features);
    expect(blip2rt_chat_ask(chat, "who?", NULL, NULL, NULL, &texts, &error) == BLIP2RT_OK, "chat_ask", error);
    blip2rt_texts_free(texts);
    blip2rt_chat_free(chat);
    if (round == rounds / 10) printf("%ld\n", resident());
  }
  printf("%ld\n", resident());
  blip2rt_model_free(model);
  return 0;
}
