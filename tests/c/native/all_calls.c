/* Makes every call of the library, again and again: all_calls FOLDER RUNTIME IMAGE COUNT THREADS. RUNTIME: ONNX
 * Runtime's library, or core. The threads share a model and an image. Run with sanitizers or valgrind. Prints the
 * resident memory after a tenth of the rounds of one thread and at the end, in KiB. */
#include <blip2rt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shared {
  const char *folder, *image;
  const char* load[5];
  int rounds;
  blip2rt_model* model;
  blip2rt_features* features;
} shared;

static const char* const kOptions[] = {"num_captions", "2", "stop_strings", "dog", NULL};
static const char* const kWrong[] = {"beams", "2", "num_beams", "0", NULL};
static const char* const kGreedy[] = {"num_beams", "1", NULL};
static const char* const kSampled[] = {"do_sample", "true", "seed", "7", NULL};
static const char* const kChoices[] = {"a dog", "a cat", NULL};
static const unsigned char kPixels[2 * 3 * 4] = {1, 2, 3, 200};

static long resident(void) {
  long pages = 0;
  FILE* file = fopen("/proc/self/statm", "r");
  if (file == NULL || fscanf(file, "%*s %ld", &pages) != 1) exit(3);
  fclose(file);
  return pages * 4;
}

/* error: NULL, or where the call has put it. */
static void expect(int holds, const char* what, blip2rt_error* const* error) {
  if (holds) return;
  fprintf(stderr, "%s: %s\n", what, error == NULL || *error == NULL ? "?" : blip2rt_error_message(*error));
  exit(1);
}

static int stop(const char* piece, void* user) {
  (void)piece;
  return ++*(int*)user == 2;
}

static void load(shared* use, blip2rt_model** model, blip2rt_features** features) {
  blip2rt_image* image;
  blip2rt_error* error;
  expect(blip2rt_load(use->folder, use->load, model, &error) == BLIP2RT_OK, "load", &error);
  expect(blip2rt_image_file(*model, use->image, &image, &error) == BLIP2RT_OK, "image", &error);
  expect(blip2rt_encode(*model, image, features, &error) == BLIP2RT_OK, "encode", &error);
  blip2rt_image_free(image);
}

static void pictures(blip2rt_model* model) {
  blip2rt_image* image;
  blip2rt_features* features;
  blip2rt_error* error;
  float values[1024];
  size_t rows, width;
  expect(blip2rt_image_bytes(model, "GIF", 3, &image, &error) == BLIP2RT_BAD_IMAGE, "bytes", &error);
  blip2rt_error_free(error);
  expect(blip2rt_image_pixels(model, kPixels, 3, 2, 0, BLIP2RT_BGRA, &image, &error) == BLIP2RT_OK, "pixels", &error);
  expect(blip2rt_encode(model, image, &features, &error) == BLIP2RT_OK, "encode", &error);
  blip2rt_image_free(image);
  expect(blip2rt_embed_image(model, features, values, 1024, &rows, &width, &error) == BLIP2RT_OK, "embed", &error);
  blip2rt_features_free(features);
}

static void texts(blip2rt_model* model, blip2rt_features* features) {
  blip2rt_texts* texts;
  blip2rt_chat* chat;
  blip2rt_error* error;
  double share;
  size_t count;
  int calls = 0;
  expect(blip2rt_caption(model, features, NULL, kOptions, NULL, NULL, &texts, &error) == BLIP2RT_OK, "caption", &error);
  expect(blip2rt_texts_count(texts) == 2 && blip2rt_texts_get(texts, 1) != NULL, "texts", NULL);
  expect(blip2rt_texts_tokens(texts, 0, &count) != NULL && blip2rt_texts_score(texts, 0) <= 0, "tokens", NULL);
  blip2rt_texts_free(texts);
  expect(blip2rt_ask(model, features, "what?", kGreedy, stop, &calls, &texts, &error) == BLIP2RT_OK, "ask", &error);
  blip2rt_texts_free(texts);
  expect(blip2rt_ask(model, features, "who?", kSampled, NULL, NULL, &texts, &error) == BLIP2RT_OK, "sample", &error);
  blip2rt_texts_free(texts);
  expect(blip2rt_caption(model, features, NULL, kWrong, NULL, NULL, &texts, &error) != BLIP2RT_OK, "wrong", &error);
  expect(texts == NULL && error != NULL && blip2rt_error_count(error) == 2, "faults", &error);
  blip2rt_error_free(error);
  expect(blip2rt_chat_begin(model, features, kGreedy, &chat, &error) == BLIP2RT_OK, "chat", &error);
  expect(blip2rt_chat_ask(chat, "who?", NULL, NULL, NULL, &texts, &error) == BLIP2RT_OK, "chat_ask", &error);
  blip2rt_texts_free(texts);
  blip2rt_chat_free(chat);
  expect(blip2rt_caption(model, features, NULL, NULL, NULL, NULL, &texts, &error) == BLIP2RT_OK, "own", &error);
  expect(blip2rt_confidence(model, features, texts, 0, &share, &error) == BLIP2RT_OK, "confidence", &error);
  blip2rt_texts_free(texts);
}

static void matches(blip2rt_model* model, blip2rt_features* features) {
  blip2rt_texts* tags;
  blip2rt_error* error;
  double share;
  size_t index, width;
  float values[1024];
  expect(blip2rt_match(model, features, "a dog", &share, NULL, NULL, &error) == BLIP2RT_OK, "match", &error);
  expect(blip2rt_sees(model, features, "a dog", &share, &error) == BLIP2RT_OK, "sees", &error);
  expect(blip2rt_choose(model, features, "what?", kChoices, &index, &error) == BLIP2RT_OK, "choose", &error);
  expect(blip2rt_tag(model, features, kChoices, 2, 0.0, &tags, &error) == BLIP2RT_OK, "tag", &error);
  blip2rt_texts_free(tags);
  expect(blip2rt_embed_text(model, "a cat", values, 1024, &width, &error) == BLIP2RT_OK, "embed_text", &error);
}

static void* work(void* given) {
  shared* use = given;
  int round;
  for (round = 0; round < use->rounds; ++round) {
    blip2rt_model* model = use->model;
    blip2rt_features* features = use->features;
    if (round % 50 == 49) load(use, &model, &features);
    pictures(model);
    texts(model, features);
    matches(model, features);
    if (model == use->model) continue;
    blip2rt_features_free(features);
    blip2rt_model_free(model);
  }
  return NULL;
}

int main(int argc, char** argv) {
  shared use = {0};
  pthread_t* threads;
  int i, count, rounds, core;
  if (argc != 6) return 2;
  use.folder = argv[1];
  use.image = argv[3];
  core = strcmp(argv[2], "core") == 0;
  use.load[0] = "threads", use.load[1] = core ? "2" : "1";
  use.load[2] = core ? "runtime" : "onnxruntime", use.load[3] = argv[2];
  rounds = atoi(argv[4]);
  count = atoi(argv[5]);
  load(&use, &use.model, &use.features);
  use.rounds = rounds / 10;
  work(&use);
  printf("%ld\n", resident());
  use.rounds = rounds - use.rounds;
  threads = calloc(count, sizeof *threads);
  for (i = 1; i < count; ++i) expect(pthread_create(&threads[i], NULL, work, &use) == 0, "thread", NULL);
  work(&use);
  for (i = 1; i < count; ++i) pthread_join(threads[i], NULL);
  free(threads);
  printf("%ld\n", resident());
  blip2rt_features_free(use.features);
  blip2rt_model_free(use.model);
  return 0;
}
