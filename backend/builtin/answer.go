package builtin

import (
	"errors"
	"fmt"
	"strings"

	"mintai/backend/builtin/calc"
	"mintai/backend/builtin/wordnet"
)

// Honest is the answer to every prompt that is neither a calculation nor a
// word of the dictionary.
const Honest = "I cannot answer that: this is MintAI's built-in reference, a dictionary and exact arithmetic, " +
	"not a language model; to connect one, run `ollama serve` on the miner's machine with a model pulled " +
	"(it is noticed within seconds) or add a [[miner.backend]] to miner.toml."

const (
	maxSenses   = 5 // shown of each word class
	maxSynonyms = 4 // shown of each sense
	maxEntries  = 3 // shown for a form of several words
	maxExamples = 1 // shown of each sense
)

// attribution ends every answer from the dictionary, as its licence asks for.
const attribution = "From WordNet 3.0, Copyright 2006 by Princeton University. All rights reserved."

// Answer returns the answer to prompt, without a line break at its end. The
// same prompt always gets the same answer.
func (e *Engine) Answer(prompt string) string {
	if len(prompt) > maxQuestion {
		return Honest
	}
	expression := calculation(prompt)
	result, err := calc.Eval(expression)
	isNotArithmetic := errors.Is(err, calc.ErrNotArithmetic)
	if !isNotArithmetic && !e.isWord(expression) {
		if err != nil {
			return "I cannot calculate that: " + err.Error() + "."
		}
		return result.String()
	}
	q, ok := readQuestion(prompt)
	if !ok {
		return Honest
	}
	return e.define(q)
}

// isWord reports whether the dictionary has a name like 9/11 for what could be
// a calculation too.
func (e *Engine) isWord(s string) bool {
	if strings.Contains(s, " ") || len(s) > 12 {
		return false
	}
	entries, err := e.words.Lookup(s, 0)
	return err == nil && len(entries) > 0
}

// define answers a question for a word.
func (e *Engine) define(q question) string {
	entries, err := e.words.Lookup(q.subject, maxSenses)
	if err != nil {
		return "I cannot look that up: the built-in dictionary is damaged; install mintai again."
	}
	if len(entries) == 0 {
		if !q.explicit && strings.Contains(q.subject, " ") {
			return Honest
		}
		return fmt.Sprintf("“%s” is not in the built-in dictionary. ", truncate(q.subject, 100)) + Honest
	}
	var b strings.Builder
	if len(entries) > maxEntries {
		entries = entries[:maxEntries]
	}
	if note := e.inflection(q.subject, entries); note != "" {
		b.WriteString(note + "\n\n")
	}
	for _, entry := range entries {
		writeEntry(&b, entry)
	}
	b.WriteString(attribution)
	return b.String()
}

// inflection says of which words the subject is a form.
func (e *Engine) inflection(subject string, entries []*wordnet.Entry) string {
	var words []string
	also := ""
	if sameWord(subject, entries[0].Word) {
		bases, err := e.words.Irregular(subject)
		if err != nil {
			return ""
		}
		for _, b := range bases {
			words = appendNew(words, "“"+b.Word+"”")
		}
		also = "also "
	} else {
		for _, entry := range entries {
			words = appendNew(words, "“"+entry.Word+"”")
		}
		if len(entries) == 1 && entries[0].Word != "" && strings.Contains(subject, " ") {
			return "" // a compound, spelled in another way
		}
	}
	if len(words) == 0 {
		return ""
	}
	return fmt.Sprintf("“%s” is %sa form of %s.", subject, also, joinWords(words))
}

func appendNew(list []string, s string) []string {
	for _, have := range list {
		if have == s {
			return list
		}
	}
	return append(list, s)
}

func joinWords(words []string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// sameWord reports whether a and b differ only in capitals, hyphens, spaces
// and full stops.
func sameWord(a, b string) bool {
	plain := strings.NewReplacer("-", "", " ", "", "_", "", ".", "", "’", "'")
	return strings.EqualFold(plain.Replace(a), plain.Replace(b))
}

// writeEntry writes an entry as text that reads well as it is and as Markdown.
func writeEntry(b *strings.Builder, entry *wordnet.Entry) {
	for _, g := range entry.Groups {
		fmt.Fprintf(b, "%s (%s)\n\n", entry.Word, g.PartOfSpeech)
		for i, s := range g.Senses {
			fmt.Fprintf(b, "%d. %s\n", i+1, s.Definition)
			for _, example := range s.Examples[:min(len(s.Examples), maxExamples)] {
				fmt.Fprintf(b, "   “%s”\n", example)
			}
			if synonyms := others(s.Words, entry.Word); len(synonyms) > 0 {
				fmt.Fprintf(b, "   Also: %s\n", strings.Join(synonyms, ", "))
			}
		}
		if more := g.Total - len(g.Senses); more > 0 {
			fmt.Fprintf(b, "   … and %d more\n", more)
		}
		b.WriteString("\n")
	}
}

// others returns the first of words that are not the word itself.
func others(words []string, word string) []string {
	var rest []string
	for _, w := range words {
		if !strings.EqualFold(w, word) && len(rest) < maxSynonyms {
			rest = append(rest, w)
		}
	}
	return rest
}
