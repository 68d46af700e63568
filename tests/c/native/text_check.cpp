// Writes what engines/model makes of each line of standard input, one result a line, for a comparison with Python.
#include <iostream>
#include <string>

#include "model/statements.h"
#include "model/text_forms.h"

int main() {
  using namespace blip2rt;
  for (std::string text; std::getline(std::cin, text);) {
    std::cout << phrase_of(text).value_or("-") << '\n'
              << is_phrase(text) << '\n'
              << question_of(text) << '\n'
              << with_article(text) << '\n'
              << without_article(text) << '\n'
              << stripped(text) << '\n'
              << tidied(text) << '\n'
              << cleaned_up(text) << '\n'
              << clean_caption(text) << '\n'
              << has_words(text) << '\n';
  }
}
