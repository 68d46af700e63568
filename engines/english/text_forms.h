// Forms of a text: stripped, on one line, cleaned up, as captions are normalised. Texts are valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

// Without white space at the ends.
std::string_view stripped(std::string_view text);

// Without white space at the end.
std::string_view stripped_end(std::string_view text);

// Without these characters at the ends, or only at the right one.
std::string trimmed(const std::string& text, const char* characters, bool left = true);

// Words between white space; views of `text`.
std::vector<std::string_view> words_of(std::string_view text);

// Words with a space between two of them.
std::string joined_words(const std::vector<std::string_view>& words);

bool ends_with(std::string_view text, std::string_view end);

// In lower case, as Python writes it.
std::string lower_text(std::string_view text);

// On one line, without spaces before punctuation and clitics.
std::string tidied(std::string_view text);

// The length of a text without an end before which a space may go when more follows, and that space.
size_t settled_line(std::string_view text);

// What Hugging Face's clean_up_tokenization does.
std::string cleaned_up(std::string text);

// The length of the longest prefix that clean-up cannot change any more, whatever follows.
size_t cleaned_length(std::string_view text);

// Lower case, no sentence punctuation, single spaces: like the reference's caption processor.
std::string clean_caption(std::string_view text);

// Whether a character is a letter, a digit or "_": Python's \w.
bool is_word_character(uint32_t character);

// Whether a text has a letter or a digit.
bool has_words(std::string_view text);

// The first `count` characters of a text.
std::string_view first_characters(std::string_view text, size_t count);

}  // namespace blip2rt
