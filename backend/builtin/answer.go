package builtin

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"mintai/backend/builtin/calc"
	"mintai/backend/builtin/wordnet"
)

// about and connect are the halves of what the engine says of itself.
const (
	about   = "MintAI's built-in reference, a dictionary and exact arithmetic, not a language model"
	connect = "to connect one, run `ollama serve` on the miner's machine with a model pulled " +
		"(it is noticed within seconds) or add a [[miner.backend]] to miner.toml."
)

// Honest is the answer to every prompt that is neither a calculation nor a
// word of the dictionary.
const Honest = "I cannot answer that: this is " + about + "; " + connect

const (
	maxSenses   = 5 // shown of each word class
	maxSynonyms = 4 // shown of each sense
	maxEntries  = 3 // shown for a form of several words
	maxNear     = 3 // suggested for an unknown word
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
		// "What is a dwarf star?" asks for a word, "What is a tunnel used for?"
		// does not.
		if spaces := strings.Count(q.subject, " "); !q.explicit && spaces > 0 && !(q.article && spaces == 1) {
			return Honest
		}
		return e.unknown(q.subject)
	}
	if q.class != nil {
		for _, entry := range entries {
			first(entry, *q.class)
		}
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

// unknown says that the dictionary has no such word, and which ones look like
// it.
func (e *Engine) unknown(subject string) string {
	name := "“" + truncate(subject, 100) + "”"
	near, err := e.words.Near(subject, maxNear)
	if err != nil || len(near) == 0 {
		return name + " is not in the English dictionary of this engine: it is " + about + "; " + connect
	}
	for i, w := range near {
		near[i] = "“" + w + "”"
	}
	return name + " is not in the English dictionary; did you mean " + joinWords(near, "or") +
		"? This engine is " + about + "; " + connect
}

// first moves the group of a word class to the front: who asks for "a tunnel"
// means the noun.
func first(entry *wordnet.Entry, class wordnet.PartOfSpeech) {
	slices.SortStableFunc(entry.Groups, func(a, b wordnet.Group) int {
		switch {
		case a.PartOfSpeech == b.PartOfSpeech:
			return 0
		case a.PartOfSpeech == class:
			return -1
		case b.PartOfSpeech == class:
			return 1
		}
		return 0
	})
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
	}
	if len(words) == 0 {
		return ""
	}
	return fmt.Sprintf("“%s” is %sa form of %s.", subject, also, joinWords(words, "and"))
}

func appendNew(list []string, s string) []string {
	for _, have := range list {
		if have == s {
			return list
		}
	}
	return append(list, s)
}

// joinWords writes a list as in a sentence: "a, b and c".
func joinWords(words []string, and string) string {
	if len(words) == 1 {
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " " + and + " " + words[len(words)-1]
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
			if text, ok := example(s, entry.Word); ok {
				fmt.Fprintf(b, "   “%s”\n", text)
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

// example returns the first example that uses word, in any form of it. The
// examples of a sense belong to all of its words, so that others may not: any
// will do only when the word stands alone.
func example(s wordnet.Sense, word string) (string, bool) {
	stem := strings.ToLower(word[:min(len(word), max(3, len(word)-2))])
	for _, text := range s.Examples {
		if strings.Contains(strings.ToLower(text), stem) {
			return text, true
		}
	}
	if len(s.Words) == 1 && len(s.Examples) > 0 {
		return s.Examples[0], true
	}
	return "", false
}
