package node

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"mintai/identity"
)

// secretWords finds the keys under which people write secrets.
var secretWords = pattern(`(?i)key|secret|token|passw|pwd|auth|bearer|credential|join`)

// pattern is a regular expression that is compiled when it is first used: most
// runs of the program use none, and compiling all takes milliseconds at its start.
func pattern(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// problemList collects what is wrong.
type problemList struct {
	problems []Problem
	lines    map[string]int
}

func (l *problemList) add(key, format string, args ...any) {
	l.problems = append(l.problems, Problem{Line: l.lineOf(key), Key: key, Message: fmt.Sprintf(format, args...)})
}

// lineOf returns the line of key, or of the nearest table around it.
func (l *problemList) lineOf(key string) int {
	for key != "" {
		if line, ok := l.lines[key]; ok {
			return line
		}
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
	}
	return 0
}

func (l *problemList) sort() {
	sort.SliceStable(l.problems, func(i, j int) bool { return l.problems[i].Line < l.problems[j].Line })
}

// configDecoder fills the structs of Config from a decoded TOML document. The
// TOML package's own decoder stops at the first value of a wrong type and does
// not say where unknown keys are; this one goes on and does.
type configDecoder struct {
	problemList
	broken map[string]bool // keys with a problem, not to be judged further
}

func (d *configDecoder) decode(raw map[string]any, cfg *Config) {
	d.table("", raw, reflect.ValueOf(cfg).Elem())
}

func (d *configDecoder) fail(key, format string, args ...any) {
	d.broken[key] = true
	d.add(key, format, args...)
}

// table fills the struct dst, whose fields carry their keys as toml tags.
func (d *configDecoder) table(path string, raw map[string]any, dst reflect.Value) {
	fields := fieldsOf(dst.Type())
	for _, key := range slices.Sorted(maps.Keys(raw)) {
		at := joinKey(path, key)
		if i, ok := fields[key]; ok {
			d.value(at, raw[key], dst.Field(i))
		} else {
			_, isText := raw[key].(string)
			d.unknown(path, key, isText, slices.Sorted(maps.Keys(fields)))
		}
	}
}

// fieldsOf returns a struct's TOML keys with the index of their field.
func fieldsOf(t reflect.Type) map[string]int {
	fields := make(map[string]int)
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("toml"); tag != "" && tag != "-" {
			fields[tag] = i
		}
	}
	return fields
}

var indexes = pattern(`\[\d+\]`)

// unknown says where an unknown key may have been meant to stand, and sends
// secrets to where they belong.
func (d *configDecoder) unknown(path, key string, isText bool, known []string) {
	at := joinKey(path, key)
	near := nearest(strings.ToLower(strings.ReplaceAll(key, "-", "_")), known)
	// A misspelled api_key_file or tokens_per_second is no secret.
	misspelled := strings.HasSuffix(near, "_file") || strings.HasSuffix(near, "_env") || near != "" && !isText
	if advice := secretAdvice(indexes().ReplaceAllString(path, ""), key); advice != "" && !misspelled {
		d.fail(at, "%s: no secrets in this file: %s", key, advice)
		return
	}
	if at == "coordinator.turn.urls" {
		d.fail(at, "urls has moved: write relays = [\"own\", \"turn:…\"] into [coordinator], without \"own\" if these are to be the only ones")
		return
	}
	where := "at the top of the file"
	if path != "" {
		where = "in " + header(path)
	}
	what := fmt.Sprintf("unknown key %q", key)
	if path == "" {
		what = fmt.Sprintf("unknown section or key %q", key)
	}
	hint := "; known are " + strings.Join(known, ", ")
	if near != "" {
		hint = fmt.Sprintf(": did you mean %q?", near)
	} else if others := tablesWith(key); len(others) > 0 {
		hint = ": it belongs in " + strings.Join(others, " or ")
	}
	d.fail(at, "%s %s%s", what, where, hint)
}

// header is how a table is written in TOML.
func header(path string) string {
	plain := indexes().ReplaceAllString(path, "")
	if plain != path && strings.HasSuffix(path, "]") {
		return "[[" + plain + "]]"
	}
	return "[" + plain + "]"
}

// tablesWith lists the tables that know a key.
func tablesWith(key string) []string {
	var tables []string
	var visit func(path string, t reflect.Type)
	visit = func(path string, t reflect.Type) {
		fields := fieldsOf(t)
		for _, name := range slices.Sorted(maps.Keys(fields)) {
			field := t.Field(fields[name]).Type
			if name == key && path != "" {
				tables = append(tables, header(path))
			}
			switch {
			case isTable(field):
				visit(joinKey(path, name), field)
			case field.Kind() == reflect.Slice && isTable(field.Elem()):
				visit(joinKey(path, name)+"[0]", field.Elem())
			}
		}
	}
	visit("", reflect.TypeFor[Config]())
	return tables
}

// isTable reports whether a struct type is a TOML table of ours.
func isTable(t reflect.Type) bool { return t.Kind() == reflect.Struct && len(fieldsOf(t)) > 0 }

// secretAdvice returns the key that a secret belongs to, when key looks like
// the place for one; else "".
func secretAdvice(table, key string) string {
	if !secretWords().MatchString(key) {
		return ""
	}
	switch table {
	case "miner.backend":
		return "write api_key_file (a file's path) or api_key_env (an environment variable's name)"
	case "coordinator.turn":
		return "write secret_file (a file's path) or secret_env (an environment variable's name)"
	case "coordinator.tls":
		return "write key_file (the path of the certificate's key)"
	case "miner", "client":
		return "write join_file (the path of a file with the join link), or set MINTAI_JOIN"
	case "coordinator":
		return "the join secret is made on first start and kept in the state folder"
	}
	return "secrets come from files and environment variables; see config.example.toml"
}

// value assigns one TOML value to a field.
func (d *configDecoder) value(at string, raw any, dst reflect.Value) {
	switch p := dst.Addr().Interface().(type) {
	case *identity.Link:
		d.link(at, raw, p)
		return
	case *PortRange:
		d.ports(at, raw, p)
		return
	case *time.Duration:
		d.duration(at, raw, p)
		return
	}
	switch dst.Kind() {
	case reflect.String:
		if s, ok := raw.(string); ok {
			dst.SetString(s)
		} else {
			d.fail(at, "%s must be text in quotes, not %s", lastKey(at), kindOf(raw))
		}
	case reflect.Bool:
		if b, ok := raw.(bool); ok {
			dst.SetBool(b)
		} else {
			d.fail(at, "%s must be true or false, not %s", lastKey(at), kindOf(raw))
		}
	case reflect.Int:
		if n, ok := raw.(int64); ok && int64(int(n)) == n {
			dst.SetInt(n)
		} else {
			d.fail(at, "%s must be a whole number, not %s", lastKey(at), kindOf(raw))
		}
	case reflect.Float64:
		switch n := raw.(type) {
		case int64:
			dst.SetFloat(float64(n))
		case float64:
			dst.SetFloat(n)
		default:
			d.fail(at, "%s must be a number, not %s", lastKey(at), kindOf(raw))
		}
	case reflect.Struct:
		if t, ok := raw.(map[string]any); ok {
			d.table(at, t, dst)
		} else {
			d.fail(at, "%s must be a section, [%s], not %s", lastKey(at), at, kindOf(raw))
		}
	case reflect.Slice:
		d.slice(at, raw, dst)
	default:
		d.fail(at, "%s cannot be set here", lastKey(at))
	}
}

func (d *configDecoder) slice(at string, raw any, dst reflect.Value) {
	if dst.Type().Elem().Kind() == reflect.String {
		list, ok := raw.([]any)
		if !ok {
			d.fail(at, "%s must be a list, such as [\"a\", \"b\"], not %s", lastKey(at), kindOf(raw))
			return
		}
		texts := make([]string, 0, len(list))
		for i, element := range list {
			s, ok := element.(string)
			if !ok {
				d.fail(indexKey(at, i), "%s must be a list of texts in quotes, not of %s", lastKey(at), kindOf(element))
				continue
			}
			texts = append(texts, s)
		}
		dst.Set(reflect.ValueOf(texts))
		return
	}
	tables, ok := tablesOf(raw)
	if !ok {
		d.fail(at, "%s must be written [[%s]], in double brackets, once for each", lastKey(at), at)
		return
	}
	backends := make([]BackendConfig, len(tables))
	for i, t := range tables {
		backends[i] = defaultBackend()
		d.table(indexKey(at, i), t, reflect.ValueOf(&backends[i]).Elem())
	}
	dst.Set(reflect.ValueOf(backends))
}

// tablesOf reads both forms of an array of tables.
func tablesOf(raw any) ([]map[string]any, bool) {
	switch list := raw.(type) {
	case []map[string]any:
		return list, true
	case []any:
		tables := make([]map[string]any, 0, len(list))
		for _, element := range list {
			t, ok := element.(map[string]any)
			if !ok {
				return nil, false
			}
			tables = append(tables, t)
		}
		return tables, true
	}
	return nil, false
}

func (d *configDecoder) duration(at string, raw any, dst *time.Duration) {
	text, ok := raw.(string)
	if !ok {
		d.fail(at, "%s must be a duration in quotes, such as \"5s\" or \"1m30s\", not %s", lastKey(at), kindOf(raw))
		return
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		d.fail(at, "%s must be a duration such as \"500ms\", \"5s\" or \"1m30s\", not %q", lastKey(at), text)
		return
	}
	*dst = v
}

func (d *configDecoder) link(at string, raw any, dst *identity.Link) {
	text, ok := raw.(string)
	if !ok {
		d.fail(at, "join must be a join link in quotes, \"mintai://…\", not %s", kindOf(raw))
		return
	}
	if text == "" {
		return
	}
	l, err := identity.ParseLink(text)
	if err != nil {
		d.fail(at, "join: %s; paste the whole link that the coordinator printed", err)
		return
	}
	*dst = l
}

func (d *configDecoder) ports(at string, raw any, dst *PortRange) {
	text, _ := raw.(string)
	r, err := parsePortRange(text)
	if err != nil {
		d.fail(at, "%s must be a range of ports in quotes, such as \"49160-49259\": %s", lastKey(at), err)
		return
	}
	*dst = r
}

func parsePortRange(s string) (PortRange, error) {
	low, high, ok := strings.Cut(s, "-")
	if !ok {
		return PortRange{}, errors.New("no - between two ports")
	}
	from, err := strconv.ParseUint(strings.TrimSpace(low), 10, 16)
	if err != nil || from == 0 {
		return PortRange{}, errors.New("the first is no port from 1 to 65535")
	}
	to, err := strconv.ParseUint(strings.TrimSpace(high), 10, 16)
	if err != nil {
		return PortRange{}, errors.New("the second is no port from 1 to 65535")
	}
	if to < from {
		return PortRange{}, errors.New("the second is smaller than the first")
	}
	return PortRange{Min: uint16(from), Max: uint16(to)}, nil
}

// lastKey is the key without its tables and indexes, as written on its line.
func lastKey(at string) string {
	plain := indexes().ReplaceAllString(at, "")
	return plain[strings.LastIndexByte(plain, '.')+1:]
}

// kindOf names the kind of a TOML value, never the value itself.
func kindOf(raw any) string {
	switch v := raw.(type) {
	case string:
		return "text"
	case bool:
		return "true or false"
	case int64:
		return "a number"
	case float64:
		return "a number with a fraction"
	case time.Time:
		return "a date"
	case map[string]any, []map[string]any:
		return "a section"
	case []any:
		return "a list"
	default:
		return reflect.TypeOf(v).String()
	}
}

// splitIP reads an IP address, in brackets or not.
func splitIP(s string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]"))
	return ip, err == nil
}
