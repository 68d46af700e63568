/* blip2rt.h: caption pictures, answer questions about them, and match them with texts. C99; docs/c.md has examples.
 *
 * Handles are opaque, and NULL or a freed handle is an error, never a crash. Free a handle with its own function; it
 * may still be in use by a call of another thread. Any number of threads may share models, images and features; one
 * thread at a time uses a chat. Texts are UTF-8; in results, U+0000 is U+FFFD. Images hold what a model needs of a
 * picture, so they belong to that model.
 *
 * Every call returns a status. If it is not BLIP2RT_OK and `error` is not NULL, *error receives the faults, all at
 * once, each with its fix; free it. On success *error becomes NULL, and outputs become NULL on failure.
 *
 * Options are pairs of key and value that end with NULL: {"num_beams", "5", "stop_strings", ".", NULL}. NULL means
 * none. Numbers are written in decimal, Booleans as true or false; keys of a list may be repeated. Unknown keys are
 * errors.
 *
 * The library does not throw, exit, print, or read the environment. */
#ifndef BLIP2RT_H
#define BLIP2RT_H

#include <stddef.h>
#include <stdint.h>

#if defined(BLIP2RT_BUILD) && defined(_WIN32)
#define BLIP2RT_API __declspec(dllexport)
#elif defined(BLIP2RT_BUILD)
#define BLIP2RT_API __attribute__((visibility("default")))
#else
#define BLIP2RT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define BLIP2RT_ABI_VERSION 1 /* functions are added to a version; none changes or disappears */

typedef struct blip2rt_model blip2rt_model;
typedef struct blip2rt_image blip2rt_image;       /* a decoded picture, resized for a model */
typedef struct blip2rt_features blip2rt_features; /* the encoder's output for an image */
typedef struct blip2rt_chat blip2rt_chat;         /* a conversation about an image */
typedef struct blip2rt_texts blip2rt_texts;       /* captions or answers */
typedef struct blip2rt_error blip2rt_error;

typedef enum blip2rt_status {
  BLIP2RT_OK = 0,
  BLIP2RT_BAD_ARGUMENT = 1, /* NULL, a freed handle, an invalid option or text */
  BLIP2RT_BAD_IMAGE = 2,    /* missing, damaged, too large, or of another format */
  BLIP2RT_BAD_MODEL = 3,    /* a bundle that is missing, damaged or too new, or lacks what the call needs */
  BLIP2RT_TIMEOUT = 4,      /* max_time passed before the first word */
  BLIP2RT_NO_MEMORY = 5,
  BLIP2RT_FAILED = 6 /* ONNX Runtime is missing or failed */
} blip2rt_status;

typedef enum blip2rt_format { BLIP2RT_RGB = 0, BLIP2RT_BGR = 1, BLIP2RT_RGBA = 2, BLIP2RT_BGRA = 3 } blip2rt_format;

/* The ABI of the loaded library, to be compared with BLIP2RT_ABI_VERSION; its release, such as "0.2.0". */
BLIP2RT_API uint32_t blip2rt_abi_version(void);
BLIP2RT_API const char* blip2rt_version(void);

/* Models ---------------------------------------------------------------------------------------------------------- */

/* Opens the bundle in a folder; NULL opens the installed nano. Graphs are loaded by the first call that needs them.
 *
 * - threads: threads of each operator; default: one for each physical core
 * - onnxruntime: path of ONNX Runtime's library; default: beside this library, then where the loader looks. The first
 *   model decides for the process.
 * - runtime: onnxruntime, or core to run the graphs without it; default: core for weights in int4 on x86-64 with AVX2,
 *   where it is at least as fast, and where no ONNX Runtime is found
 * - max_pixels: largest width times height of an image file, default 50000000; a larger JPEG is decoded at a fraction
 *   of its size where possible
 * - scaled_jpeg: true decodes large JPEGs at a fraction of their size; faster, slightly different
 * - special_tokens: false makes "<|im_end|>" in a prompt, question or text plain text, not that token; default: true
 * - trusted_graphs: true allows operators that blip2rt-export does not write; some end the process
 * - run_timeout: seconds that one run of a graph may take; default: 60, plus 1 for each MB of its files
 * - verify: true compares the sha256 of every file with the manifest, and reads the tokenizers to the end */
BLIP2RT_API blip2rt_status blip2rt_load(const char* folder, const char* const* options, blip2rt_model** model,
                                        blip2rt_error** error);
BLIP2RT_API void blip2rt_model_free(blip2rt_model* model);

/* Images ---------------------------------------------------------------------------------------------------------- */

/* Decodes a JPEG, PNG or WebP file. EXIF orientation is applied, transparent parts are put on white. */
BLIP2RT_API blip2rt_status blip2rt_image_file(blip2rt_model* model, const char* path, blip2rt_image** image,
                                              blip2rt_error** error);
/* Decodes the contents of such a file. */
BLIP2RT_API blip2rt_status blip2rt_image_bytes(blip2rt_model* model, const void* bytes, size_t size,
                                               blip2rt_image** image, blip2rt_error** error);
/* Copies pixels of 8 bits a channel. stride: bytes from a row to the next, negative if the last row comes first in
 * memory; 0: rows follow each other without padding. `pixels` points to the top row. */
BLIP2RT_API blip2rt_status blip2rt_image_pixels(blip2rt_model* model, const void* pixels, size_t width, size_t height,
                                                ptrdiff_t stride, blip2rt_format format, blip2rt_image** image,
                                                blip2rt_error** error);
BLIP2RT_API void blip2rt_image_free(blip2rt_image* image);

/* Runs the image encoder: most of the work, once for any number of captions, questions, texts and chats. */
BLIP2RT_API blip2rt_status blip2rt_encode(blip2rt_model* model, blip2rt_image* image, blip2rt_features** features,
                                          blip2rt_error** error);
BLIP2RT_API void blip2rt_features_free(blip2rt_features* features);

/* Texts ----------------------------------------------------------------------------------------------------------- */

/* Called after every token of a caption or answer, on the thread of the call. piece: the new part of the text that is
 * final, whole characters, often empty; with beams or several captions always empty. Joined, the pieces are the text,
 * of a caption before it is put on one line. Return 0 to continue; anything else ends the text with what exists. It
 * cannot ask the chat that calls it. */
typedef int (*blip2rt_callback)(const char* piece, void* user);

/* Captions an image, or continues `prompt`; NULL is the bundle's own prompt. The options mean what they mean in Hugging
 * Face's `generate`; their defaults come from the bundle (docs/api.md):
 *
 *   num_captions, num_beams, max_new_tokens, min_new_tokens, length_penalty, early_stopping (true, false, never),
 *   repetition_penalty, no_repeat_ngram_size, bad_words (list), forced_prefix, stop_strings (list), max_time (seconds),
 *   do_sample, temperature, top_k, top_p, min_p, seed; raw (true: keep line breaks; captions only)
 *
 * A bundle's pool of captions of other pictures guides captions without a prompt or sampling; pool=none, or
 * false, leaves it out. pool=FILE names another, which `blip2rt pool build` must have made for this model; that is
 * checked where the bundle has a pool. Captions only. The bundle's own guides answers, too, unless they are sampled or
 * begin with a forced_prefix.
 *
 * callback may be NULL. */
BLIP2RT_API blip2rt_status blip2rt_caption(blip2rt_model* model, blip2rt_features* features, const char* prompt,
                                           const char* const* options, blip2rt_callback callback, void* user,
                                           blip2rt_texts** texts, blip2rt_error** error);
/* Answers a question, which is put into the bundle's template. Options as above. */
BLIP2RT_API blip2rt_status blip2rt_ask(blip2rt_model* model, blip2rt_features* features, const char* question,
                                       const char* const* options, blip2rt_callback callback, void* user,
                                       blip2rt_texts** texts, blip2rt_error** error);

/* Begins a conversation, in which a question costs only its own tokens. The options are every question's defaults. */
BLIP2RT_API blip2rt_status blip2rt_chat_begin(blip2rt_model* model, blip2rt_features* features,
                                              const char* const* options, blip2rt_chat** chat, blip2rt_error** error);
BLIP2RT_API blip2rt_status blip2rt_chat_ask(blip2rt_chat* chat, const char* question, const char* const* options,
                                            blip2rt_callback callback, void* user, blip2rt_texts** texts,
                                            blip2rt_error** error);
BLIP2RT_API void blip2rt_chat_free(blip2rt_chat* chat);

/* The best text comes first; samples are in the order drawn. Strings and tokens belong to `texts`. For an index that
 * does not exist: NULL, 0. */
BLIP2RT_API size_t blip2rt_texts_count(blip2rt_texts* texts);
BLIP2RT_API const char* blip2rt_texts_get(blip2rt_texts* texts, size_t index);
/* Sum of the tokens' log-probabilities, stop token included, over length^length_penalty. */
BLIP2RT_API double blip2rt_texts_score(blip2rt_texts* texts, size_t index);
/* 1 if max_new_tokens or max_time ended the text, not the model. */
BLIP2RT_API int blip2rt_texts_truncated(blip2rt_texts* texts, size_t index);
BLIP2RT_API const int64_t* blip2rt_texts_tokens(blip2rt_texts* texts, size_t index, size_t* count);
BLIP2RT_API void blip2rt_texts_free(blip2rt_texts* texts);

/* Matches and embeddings ------------------------------------------------------------------------------------------ */

/* Tells how well a text describes an image. Each result may be NULL. score: all evidence as logits, to rank texts or
 * images; probability: that it is true, 0 to 1; cosine: of the embeddings, -1 to 1. */
BLIP2RT_API blip2rt_status blip2rt_match(blip2rt_model* model, blip2rt_features* features, const char* text,
                                         double* score, double* probability, double* cosine, blip2rt_error** error);

/* Tells how probably a statement is true of an image, 0 to 1: a phrase ("a dog"), a sentence, or a question whether
 * something is there. Above 0.5, Python's `sees` is true. */
BLIP2RT_API blip2rt_status blip2rt_sees(blip2rt_model* model, blip2rt_features* features, const char* statement,
                                        double* probability, blip2rt_error** error);

/* Tells how probably a caption that blip2rt_caption gave for the image is right, 0 to 1; NaN for one without words. */
BLIP2RT_API blip2rt_status blip2rt_confidence(blip2rt_model* model, blip2rt_features* features, blip2rt_texts* captions,
                                              size_t index, double* probability, blip2rt_error** error);

/* Chooses among given answers to a question: *index is the number of the one that fits best. `choices` ends with
 * NULL. */
BLIP2RT_API blip2rt_status blip2rt_choose(blip2rt_model* model, blip2rt_features* features, const char* question,
                                          const char* const* choices, size_t* index, blip2rt_error** error);

/* Labels an image: at most `top` labels of a probability of at least `threshold`, the likeliest first; Python's
 * defaults are 10 and 0.3. `labels` ends with NULL and has words, phrases, or "animal|dog" for dog below animal; NULL
 * is about 1,200 everyday labels. Each tag is written like that, with its probability as its score. */
BLIP2RT_API blip2rt_status blip2rt_tag(blip2rt_model* model, blip2rt_features* features, const char* const* labels,
                                       size_t top, double threshold, blip2rt_texts** tags, blip2rt_error** error);

/* Writes embeddings of unit length: `rows` of `width` floats for an image, one row for a text. The cosine of image and
 * text is the largest product of the text's row with one of the image's. With `values` NULL, only the sizes are
 * returned; `capacity` counts floats. */
BLIP2RT_API blip2rt_status blip2rt_embed_image(blip2rt_model* model, blip2rt_features* features, float* values,
                                               size_t capacity, size_t* rows, size_t* width, blip2rt_error** error);
BLIP2RT_API blip2rt_status blip2rt_embed_text(blip2rt_model* model, const char* text, float* values, size_t capacity,
                                              size_t* width, blip2rt_error** error);

/* Errors ---------------------------------------------------------------------------------------------------------- */

/* All faults on one line, separated by "; ": "what is wrong: the fix". NULL for a freed error. */
BLIP2RT_API const char* blip2rt_error_message(blip2rt_error* error);
BLIP2RT_API blip2rt_status blip2rt_error_status(blip2rt_error* error);
BLIP2RT_API size_t blip2rt_error_count(blip2rt_error* error);
BLIP2RT_API const char* blip2rt_error_fault(blip2rt_error* error, size_t index);
BLIP2RT_API void blip2rt_error_free(blip2rt_error* error);

#ifdef __cplusplus
}
#endif
#endif
