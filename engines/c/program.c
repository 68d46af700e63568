/* blip2rt-c: caption, ask and match from the command line, without Python. */
#include <blip2rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 64 };

static const char* const load_options[] = {"threads",        "onnxruntime",    "max_pixels", "scaled_jpeg",
                                           "special_tokens", "trusted_graphs", "verify",     NULL};

static const char usage[] =
    "usage: blip2rt-c caption [--model FOLDER] [-o KEY=VALUE]... IMAGE...\n"
    "       blip2rt-c ask     [--model FOLDER] [-o KEY=VALUE]... IMAGE QUESTION...\n"
    "       blip2rt-c match   [--model FOLDER] [-o KEY=VALUE]... IMAGE TEXT...\n"
    "\n"
    "caption prints a line for each image, ask one for each question, match one for each text with its score and\n"
    "probability. Options of generation are those of blip2rt_caption, such as -o num_beams=5; -o onnxruntime=FILE "
    "names\n"
    "ONNX Runtime's library. Without --model, nano is used.\n";

static int complain(const char* what, const char* value) {
  fprintf(stderr, "blip2rt-c: error: %s%s\n", what, value);
  return 2;
}

static int fail(blip2rt_error* error) {
  const char* message = blip2rt_error_message(error);
  complain(message == NULL ? "out of memory" : message, "");
  blip2rt_error_free(error);
  return 1;
}

static int is_load_option(const char* key) {
  const char* const* each = load_options;
  while (*each != NULL && strcmp(*each, key) != 0) ++each;
  return *each != NULL;
}

/* Begins to use an image. */
static int open_image(blip2rt_model* model, const char* path, blip2rt_features** features) {
  blip2rt_image* image;
  blip2rt_error* error;
  if (blip2rt_image_file(model, path, &image, &error) != BLIP2RT_OK) return fail(error);
  if (blip2rt_encode(model, image, features, &error) != BLIP2RT_OK) fail(error);
  blip2rt_image_free(image);
  return *features == NULL;
}

static int print_texts(blip2rt_status status, blip2rt_texts* texts, blip2rt_error* error) {
  size_t i;
  if (status != BLIP2RT_OK) return fail(error);
  for (i = 0; i < blip2rt_texts_count(texts); ++i) puts(blip2rt_texts_get(texts, i));
  blip2rt_texts_free(texts);
  return 0;
}

static int caption(blip2rt_model* model, const char* const* options, char** paths) {
  int failed = 0;
  for (; *paths != NULL; ++paths) {
    blip2rt_features* features = NULL;
    blip2rt_texts* texts;
    blip2rt_error* error;
    blip2rt_status status;
    if (open_image(model, *paths, &features) != 0) {
      failed = 1;
      continue;
    }
    status = blip2rt_caption(model, features, NULL, options, NULL, NULL, &texts, &error);
    failed |= print_texts(status, texts, error);
    blip2rt_features_free(features);
  }
  return failed;
}

static int ask(blip2rt_model* model, blip2rt_features* features, const char* const* options, char** questions) {
  int failed = 0;
  for (; *questions != NULL; ++questions) {
    blip2rt_texts* texts;
    blip2rt_error* error;
    blip2rt_status status = blip2rt_ask(model, features, *questions, options, NULL, NULL, &texts, &error);
    failed |= print_texts(status, texts, error);
  }
  return failed;
}

static int match(blip2rt_model* model, blip2rt_features* features, char** texts) {
  int failed = 0;
  for (; *texts != NULL; ++texts) {
    double score, probability;
    blip2rt_error* error;
    if (blip2rt_match(model, features, *texts, &score, &probability, NULL, &error) != BLIP2RT_OK) {
      failed |= fail(error);
    } else {
      printf("%.2f\t%.3f\t%s\n", score, probability, *texts);
    }
  }
  return failed;
}

static int run(const char* command, blip2rt_model* model, const char* const* options, char** rest) {
  int failed;
  blip2rt_features* features = NULL;
  if (strcmp(command, "caption") == 0) return caption(model, options, rest);
  if (open_image(model, rest[0], &features) != 0) return 1;
  failed = strcmp(command, "ask") == 0 ? ask(model, features, options, rest + 1) : match(model, features, rest + 1);
  blip2rt_features_free(features);
  return failed;
}

int main(int argc, char** argv) {
  const char *options[2 * MAX_OPTIONS + 1] = {NULL}, *load[2 * MAX_OPTIONS + 1] = {NULL}, *folder = NULL;
  const char **next_option = options, **next_load = load;
  int at = 2, failed;
  blip2rt_model* model;
  blip2rt_error* error;
  if (argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) return fputs(usage, stdout) < 0;
  if (argc == 2 && strcmp(argv[1], "--version") == 0) return printf("blip2rt-c %s\n", blip2rt_version()) < 0;
  if (argc < 2) return fputs(usage, stderr), 2;
  if (strcmp(argv[1], "caption") != 0 && strcmp(argv[1], "ask") != 0 && strcmp(argv[1], "match") != 0) {
    return complain("no such command: choose from caption, ask, match; not ", argv[1]);
  }
  for (; at < argc && argv[at][0] == '-' && argv[at][1] != '\0'; ++at) {
    if (strcmp(argv[at], "--") == 0) {
      ++at;
      break;
    }
    if (at + 1 == argc) return complain("a value is missing behind ", argv[at]);
    if (strcmp(argv[at], "--model") == 0) {
      folder = argv[++at];
    } else if (strcmp(argv[at], "-o") == 0 && strchr(argv[at + 1], '=') != NULL) {
      char* key = argv[++at];
      char* value = strchr(key, '=');
      *value++ = '\0';
      if (next_option + 2 > options + 2 * MAX_OPTIONS || next_load + 2 > load + 2 * MAX_OPTIONS) {
        return complain("too many options: give fewer than ", key);
      }
      if (is_load_option(key)) {
        *next_load++ = key;
        *next_load++ = value;
      } else {
        *next_option++ = key;
        *next_option++ = value;
      }
    } else {
      return complain("unknown option, or -o without KEY=VALUE: ", argv[at]);
    }
  }
  if (argc - at < (strcmp(argv[1], "caption") == 0 ? 1 : 2)) return fputs(usage, stderr), 2;
  if (blip2rt_load(folder, load, &model, &error) != BLIP2RT_OK) return fail(error), 2;
  failed = run(argv[1], model, options, argv + at);
  blip2rt_model_free(model);
  return failed;
}
