package builtin

import (
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode"

	"mintai/backend/builtin/wordnet"
)

// maxQuestion is the longest prompt that is looked at, in bytes. Longer ones
// are texts to work on, which the engine cannot.
const maxQuestion = 2000

// maxSubject is the most words that something in the dictionary has.
const maxSubject = 8

// question is what a prompt asks the dictionary.
type question struct {
	subject string
	// explicit is set when only a dictionary can be meant, as in "define X",
	// so that an unknown word is worth saying.
	explicit bool
	// article is set when "a" or "an" stood before the word.
	article bool
	// class is the word class that is meant, when the question shows it.
	class *wordnet.PartOfSpeech
}

// newQuestion reads what a pattern found.
func newQuestion(found string, explicit bool) question {
	q := question{explicit: explicit, class: classOf(found)}
	q.subject = subject(found)
	start := strings.ToLower(found)
	q.article = strings.HasPrefix(start, "a ") || strings.HasPrefix(start, "an ")
	return q
}

// classOf tells the word class from what stands before the word: an article
// before a noun, "to" before a verb, or its name.
func classOf(s string) *wordnet.PartOfSpeech {
	s = strings.ToLower(s)
	for before, class := range map[string]wordnet.PartOfSpeech{
		"a ": wordnet.Noun, "an ": wordnet.Noun, "the noun ": wordnet.Noun, "noun ": wordnet.Noun,
		"to ": wordnet.Verb, "the verb ": wordnet.Verb, "verb ": wordnet.Verb,
		"the adjective ": wordnet.Adjective, "adjective ": wordnet.Adjective,
		"the adverb ": wordnet.Adverb, "adverb ": wordnet.Adverb,
	} {
		if strings.HasPrefix(s, before) {
			return &class
		}
	}
	return nil
}

const lead = `^(?:please[, ]+)?(?:(?:can|could|would) you (?:please )?)?`

// The usual spellings of a question for a word. The first group is the
// subject; patterns stand in the order in which they are tried.
var (
	explicitQuestions = compile(
		lead+`(?:give me |tell me |show me )?(?:what(?:'s|s| is| are| was) )?(?:the |a )?(?:dictionary )?(?:meanings?|definitions?|sense) (?:of|for) (.+)$`,
		lead+`(?:define|look up|dictionary)(?:: ?| )(.+)$`,
		lead+`(?:tell me |explain )?what (?:does|do|did) (.+?) (?:mean|stand for)$`,
		lead+`what(?:'s|s| is| are) meant (?:by|with) (.+)$`,
		lead+`(?:tell me|explain|explain to me|describe|do you know) what (.+?) (?:is|are|means|mean)$`,
		`^(.+?)[:,]? (?:definition|meaning)$`,
	)
	plainQuestions = compile(
		lead+`(?:tell me |so |and |ok |okay )?(?:what|who)(?:'s|'re|s| is| are| was| were) (.+)$`,
		lead+`(?:explain|describe|tell me about) (?:to me )?(.+)$`,
	)
	calculations = compile(
		lead + `(?:what(?:'s|s| is| are)|how (?:much|many) (?:is|are)|calculate|compute|evaluate|solve|work out|the result of|result of)(?:: ?| )(?:the result of )?(.+)$`,
	)
)

// compile does so with the first question: every run of the program would wait
// for it otherwise.
func compile(patterns ...string) func() []*regexp.Regexp {
	return sync.OnceValue(func() []*regexp.Regexp {
		all := make([]*regexp.Regexp, len(patterns))
		for i, p := range patterns {
			all[i] = regexp.MustCompile(`(?i)` + p)
		}
		return all
	})
}

// tidy removes what makes no difference: quotation marks of other alphabets,
// double spaces, and the punctuation at the end.
func tidy(prompt, end string) string {
	s := strings.NewReplacer("’", "'", "‘", "'", "“", `"`, "”", `"`, "\u00a0", " ").Replace(prompt)
	return strings.TrimRight(strings.Join(strings.Fields(s), " "), end)
}

// calculation returns the part of a prompt that may be a calculation: all but
// the words of the question.
func calculation(prompt string) string {
	s := tidy(prompt, " ?.=")
	for _, re := range calculations() {
		if m := re.FindStringSubmatch(s); m != nil {
			return m[1]
		}
	}
	return s
}

// readQuestion finds what word a prompt asks for.
func readQuestion(prompt string) (question, bool) {
	s := tidy(prompt, " ?!.,;:")
	for _, re := range explicitQuestions() {
		if m := re.FindStringSubmatch(s); m != nil {
			q := newQuestion(m[1], true)
			return q, plausible(q.subject)
		}
	}
	for _, re := range plainQuestions() {
		m := re.FindStringSubmatch(s)
		if m == nil {
			continue
		}
		q := newQuestion(m[1], false)
		if q.class == nil {
			q.class = new(wordnet.PartOfSpeech) // what something is, is a noun
		}
		return q, plausible(q.subject) && !slices.Contains(notMeant, strings.ToLower(m[1])) &&
			!slices.Contains(notMeant, strings.ToLower(q.subject))
	}
	// A word or two alone are a question for a dictionary; a greeting is not.
	q := newQuestion(s, false)
	return q, plausible(q.subject) && !slices.Contains(greetings, strings.ToLower(q.subject))
}

// plausible reports whether subject may stand in a dictionary.
func plausible(subject string) bool {
	for _, r := range subject {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune(" '-./&_", r) {
			return false
		}
	}
	return subject != "" && strings.Count(subject, " ") < maxSubject
}

var wrappers = compile(`^(?:the )?(?:english )?(?:word|term|phrase|expression|noun|verb|adjective|adverb) (["'\x60]?.+)$`)

// subject removes articles, quotation marks and "the word" from around a word.
func subject(s string) string {
	s = strings.TrimSpace(s)
	if m := wrappers()[0].FindStringSubmatch(s); m != nil {
		s = m[1]
	}
	for _, article := range []string{"a ", "an ", "the ", "to "} {
		if len(s) > len(article) && strings.EqualFold(s[:len(article)], article) {
			s = s[len(article):]
			break
		}
	}
	s = strings.Trim(s, "\"`")
	if len(s) > 2 && s[0] == '\'' && s[len(s)-1] == '\'' {
		s = s[1 : len(s)-1]
	}
	return strings.TrimSpace(s)
}

// notMeant are subjects that ask for more than a word when they follow "what
// is": "What is it?", "What is the time?".
var notMeant = []string{
	"it", "this", "that", "these", "those", "he", "she", "they", "them", "there", "here", "i", "me", "we", "us",
	"you", "your name", "my name", "up", "new", "next", "wrong", "going on", "happening", "so", "not", "what", "who",
	"the time", "the date", "the day", "the year", "the month", "the weather", "the news", "the temperature",
	"the answer", "the question", "the problem", "the difference", "the point", "the matter", "the best", "best",
	"better", "on", "in", "my ip",
}

// greetings are no questions for a dictionary when they stand alone.
var greetings = []string{
	"hello", "hi", "hey", "yo", "good morning", "good evening", "good afternoon", "good night", "bye", "goodbye",
	"thanks", "thank you", "thx", "please", "help", "test", "yes", "no", "ok", "okay", "stop", "continue", "go on",
	"go", "more", "next", "again", "why", "what", "who", "how", "when", "where", "really", "sure", "nice", "cool",
	"how do you do", "how are you", "who are you", "what are you",
}
