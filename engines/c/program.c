/* blip2rt-c: caption, ask, match, judge, choose and tag from the command line, without Python. */
#include <blip2rt.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if defined(_WIN32)
#include <windows.h>
#endif

enum { MAX_OPTIONS = 64 };

static const char* const load_options[] = {
    "threads",        "onnxruntime", "max_pixels", "scaled_jpeg", "special_tokens",
    "trusted_graphs", "verify",      "runtime",    "run_timeout", NULL};

/* By the least number of words that follow. */
static const char* const commands[] = {"caption", "tag", "ask", "match", "sees", "choose", NULL};

static const char usage[] =
    "usage: blip2rt-c caption [--model FOLDER] [-o KEY=VALUE]... IMAGE...\n"
    "       blip2rt-c ask     [--model FOLDER] [-o KEY=VALUE]... IMAGE QUESTION...\n"
    "       blip2rt-c match   [--model FOLDER] [-o KEY=VALUE]... IMAGE TEXT...\n"
    "       blip2rt-c sees    [--model FOLDER] [-o KEY=VALUE]... IMAGE STATEMENT...\n"
    "       blip2rt-c choose  [--model FOLDER] [-o KEY=VALUE]... IMAGE QUESTION ANSWER...\n"
    "       blip2rt-c tag     [--model FOLDER] [-o KEY=VALUE]... IMAGE [LABEL...]\n"
    "\n"
    "caption prints a line for each image, ask one for each question, match one for each text with its score and\n"
    "probability, sees one for each statement with its probability. choose prints the best answer, tag a line for\n"
    "each label with its probability, of everyday labels unless some are given. Options of generation are those of\n"
    "blip2rt_caption, such as -o num_beams=5 or -o pool=FILE; -o onnxruntime=FILE names ONNX Runtime's library,\n"
    "-o runtime=core does without it.\n"
    "Without --model, nano is used. Options may stand anywhere before \"--\".\n"
    "\n"
    "Exit status: 0 success, 1 some images, questions or texts failed, 2 all failed or a mistake in the arguments.\n";

static int complain(const char* what, const char* value) {
  fprintf(stderr, "blip2rt-c: error: %s%s\n", what, value);
  return 2;
}

static int fail(blip2rt_error* error) {
  const char* message = blip2rt_error_message(error);
  complain(message == NULL ? "out of memory" : message, "");
  blip2rt_error_free(error);
  return 2;
}

static int is_load_option(const char* key) {
  const char* const* each = load_options;
  while (*each != NULL && strcmp(*each, key) != 0) ++each;
  return *each != NULL;
}

/* Begins to use an image. Returns the exit status. */
static int open_image(blip2rt_model* model, const char* path, blip2rt_features** features) {
  blip2rt_image* image;
  blip2rt_error* error;
  if (blip2rt_image_file(model, path, &image, &error) != BLIP2RT_OK) return fail(error);
  if (blip2rt_encode(model, image, features, &error) != BLIP2RT_OK) fail(error);
  blip2rt_image_free(image);
  return *features == NULL ? 2 : 0;
}

static int print_texts(blip2rt_status status, blip2rt_texts* texts, blip2rt_error* error) {
  size_t i;
  if (status != BLIP2RT_OK) return fail(error);
  for (i = 0; i < blip2rt_texts_count(texts); ++i) puts(blip2rt_texts_get(texts, i));
  blip2rt_texts_free(texts);
  return 0;
}

static int caption(blip2rt_model* model, const char* const* options, const char* path) {
  blip2rt_features* features = NULL;
  blip2rt_texts* texts;
  blip2rt_error* error;
  blip2rt_status status;
  if (open_image(model, path, &features) != 0) return 2;
  status = blip2rt_caption(model, features, NULL, options, NULL, NULL, &texts, &error);
  blip2rt_features_free(features);
  return print_texts(status, texts, error);
}

static int ask(blip2rt_model* model, const char* const* options, blip2rt_features* features, const char* question) {
  blip2rt_texts* texts;
  blip2rt_error* error;
  blip2rt_status status = blip2rt_ask(model, features, question, options, NULL, NULL, &texts, &error);
  return print_texts(status, texts, error);
}

static int match(blip2rt_model* model, blip2rt_features* features, const char* text) {
  double score, probability;
  blip2rt_error* error;
  if (blip2rt_match(model, features, text, &score, &probability, NULL, &error) != BLIP2RT_OK) return fail(error);
  printf("%.2f\t%.3f\t%s\n", score, probability, text);
  return 0;
}

static int sees(blip2rt_model* model, blip2rt_features* features, const char* statement) {
  double probability;
  blip2rt_error* error;
  if (blip2rt_sees(model, features, statement, &probability, &error) != BLIP2RT_OK) return fail(error);
  printf("%s\t%.3f\t%s\n", probability > 0.5 ? "yes" : "no", probability, statement);
  return 0;
}

/* words: a question and answers for "choose", labels for "tag". */
static int run_once(const char* command, blip2rt_model* model, blip2rt_features* features, char** words) {
  size_t i;
  blip2rt_texts* tags;
  blip2rt_error* error;
  if (strcmp(command, "choose") == 0) {
    if (blip2rt_choose(model, features, words[0], (const char* const*)words + 1, &i, &error) != BLIP2RT_OK) {
      return fail(error);
    }
    puts(words[1 + i]);
    return 0;
  }
  if (blip2rt_tag(model, features, *words == NULL ? NULL : (const char* const*)words, 10, 0.3, &tags, &error) !=
      BLIP2RT_OK) {
    return fail(error);
  }
  for (i = 0; i < blip2rt_texts_count(tags); ++i) {
    printf("%.3f\t%s\n", blip2rt_texts_score(tags, i), blip2rt_texts_get(tags, i));
  }
  blip2rt_texts_free(tags);
  return 0;
}

static int run(const char* command, blip2rt_model* model, const char* const* options, char** words) {
  int count = 0, failed = 0;
  blip2rt_features* features = NULL;
  const int captions = strcmp(command, "caption") == 0;
  if (!captions && open_image(model, *words++, &features) != 0) return 2;
  if (strcmp(command, "choose") == 0 || strcmp(command, "tag") == 0) return run_once(command, model, features, words);
  for (; *words != NULL; ++words, ++count) {
    int status = captions                       ? caption(model, options, *words)
                 : strcmp(command, "ask") == 0  ? ask(model, options, features, *words)
                 : strcmp(command, "sees") == 0 ? sees(model, features, *words)
                                                : match(model, features, *words);
    failed += status != 0;
  }
  blip2rt_features_free(features);
  return failed == count ? 2 : failed > 0;
}

typedef struct {
  const char *options[2 * MAX_OPTIONS + 1], *load[2 * MAX_OPTIONS + 1], *folder;
  size_t option_count, load_count;
} settings;

/* Reads KEY=VALUE, which is changed. */
static int add_option(settings* into, char* key) {
  char* value = strchr(key, '=');
  const char** pair;
  if (value == NULL) return complain("-o without KEY=VALUE: ", key);
  if (into->option_count + into->load_count == 2 * MAX_OPTIONS) return complain("too many options: leave out ", key);
  *value++ = '\0';
  if (is_load_option(key)) {
    pair = into->load + into->load_count;
    into->load_count += 2;
  } else {
    pair = into->options + into->option_count;
    into->option_count += 2;
  }
  pair[0] = key;
  pair[1] = value;
  return 0;
}

/* Takes the options out of `words`, which end with NULL. */
static int read_options(settings* into, char** words) {
  char** kept = words;
  int options = 1; /* until "--" */
  for (; *words != NULL; ++words) {
    if (!options || (*words)[0] != '-' || (*words)[1] == '\0') {
      *kept++ = *words;
    } else if (strcmp(*words, "--") == 0) {
      options = 0;
    } else if (strcmp(*words, "--model") != 0 && strcmp(*words, "-o") != 0) {
      return complain("unknown option: choose from --model, -o; not ", *words);
    } else if (words[1] == NULL) {
      return complain("a value is missing after ", *words);
    } else if (strcmp(*words++, "--model") == 0) {
      into->folder = *words;
    } else if (add_option(into, *words) != 0) {
      return 2;
    }
  }
  *kept = NULL;
  return 0;
}

#if defined(_WIN32)
/* Windows' own argv lacks the characters that its code page lacks. */
static char** utf8_arguments(int* count) {
  wchar_t** wide = CommandLineToArgvW(GetCommandLineW(), count);
  char** words = wide == NULL ? NULL : calloc((size_t)*count + 1, sizeof *words);
  int i, size;
  for (i = 0; words != NULL && i < *count; ++i) {
    size = WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, NULL, 0, NULL, NULL);
    words[i] = malloc((size_t)size);
    if (words[i] == NULL) return NULL;
    WideCharToMultiByte(CP_UTF8, 0, wide[i], -1, words[i], size, NULL, NULL);
  }
  SetConsoleOutputCP(CP_UTF8);
  return words;
}
#endif

int main(int argc, char** argv) {
  settings chosen = {{NULL}, {NULL}, NULL, 0, 0};
  int status, at, count;
  char** words;
  blip2rt_model* model;
  blip2rt_error* error;
#if defined(_WIN32)
  argv = utf8_arguments(&argc);
  if (argv == NULL) return complain("out of memory", "");
#endif
  words = argv + 1;
  for (at = 1; at < argc && strcmp(argv[at], "--") != 0; ++at) {
    if (strcmp(argv[at], "--help") == 0 || strcmp(argv[at], "-h") == 0) return fputs(usage, stdout) < 0;
  }
  if (argc == 2 && strcmp(argv[1], "--version") == 0) return printf("blip2rt-c %s\n", blip2rt_version()) < 0;
  if (argc < 2) return fputs(usage, stderr), 2;
  if (read_options(&chosen, words) != 0) return 2;
  if (words[0] == NULL) return fputs(usage, stderr), 2;
  for (at = 0; commands[at] != NULL && strcmp(commands[at], words[0]) != 0; ++at) {
  }
  if (commands[at] == NULL) {
    return complain("no such command: choose from caption, tag, ask, match, sees, choose; not ", words[0]);
  }
  for (count = 1; words[count] != NULL; ++count) {
  }
  if (count < (at < 2 ? 2 : at < 5 ? 3 : 4)) return fputs(usage, stderr), 2; /* with the command */
  if (blip2rt_load(chosen.folder, chosen.load, &model, &error) != BLIP2RT_OK) return fail(error);
  status = run(words[0], model, chosen.options, words + 1);
  if (fflush(stdout) != 0 || ferror(stdout)) status = complain("cannot write the results: ", strerror(errno));
  _Exit(status); /* the system frees the model, faster than its destructors */
}
