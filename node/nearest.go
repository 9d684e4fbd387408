package node

// nearest returns the word closest to got by edit distance, or "" when none is
// close enough to be meant: at most a third of the letters differ, or got is
// the beginning of it.
func nearest(got string, words []string) string {
	best, bestDistance := "", 1+max(1, len(got)/3)
	for _, w := range words {
		if w == "" {
			continue
		}
		d := editDistance(got, w)
		if d < bestDistance || d == bestDistance && best != "" && lengthGap(w, got) < lengthGap(best, got) {
			best, bestDistance = w, d
		}
	}
	return best
}

func lengthGap(a, b string) int { return max(len(a)-len(b), len(b)-len(a)) }

// editDistance is the Levenshtein distance in bytes, with a swap of neighbours
// counted once (optimal string alignment).
func editDistance(a, b string) int {
	prev2 := make([]int, len(b)+1)
	prev := make([]int, len(b)+1)
	cur := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
