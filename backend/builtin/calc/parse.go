package calc

import "math/big"

// node is an expression: a number, an operator over one operand (left nil for
// those that stand before it, right nil for those after it) or over two.
type node struct {
	kind        kind
	value       *big.Rat
	text        string
	left, right *node
	// grouped is set when the expression stood in parentheses.
	grouped bool
}

// parser builds the tree by precedence, from loose to tight:
//
//	sum     = product { ("+" | "−") product }
//	product = signed { ("×" | "÷" | "mod" | "of") signed | power }
//	signed  = { "+" | "−" } power
//	power   = postfix [ "^" signed ]
//	postfix = primary { "!" | "%" | "²" | "³" }
//	primary = number | "(" sum ")" | ("√" | "∛") signed
type parser struct {
	tokens []token
	depth  int
}

func parse(tokens []token) (*node, error) {
	p := &parser{tokens: tokens}
	n, err := p.sum()
	if err != nil {
		return nil, err
	}
	switch p.peek().kind {
	case end:
		return n, nil
	case closing:
		return nil, &SyntaxError{"a closing parenthesis has no opening one"}
	default:
		return nil, &SyntaxError{"an operator is missing between two numbers"}
	}
}

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{}
	}
	return p.tokens[0]
}

func (p *parser) take() token {
	t := p.peek()
	if len(p.tokens) > 0 {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) sum() (*node, error) {
	left, err := p.product()
	for err == nil && (p.peek().kind == plus || p.peek().kind == minus) {
		op := p.take().kind
		var right *node
		if right, err = p.product(); err != nil {
			return nil, err
		}
		if right.kind == percent && !right.grouped && left.kind != percent {
			return nil, &SyntaxError{"adding or taking off a percentage can mean two things: write 200 × 1.1 for 10% more than 200, or 200 + 0.1"}
		}
		left = &node{kind: op, left: left, right: right}
	}
	return left, err
}

func (p *parser) product() (*node, error) {
	left, err := p.signed()
	divided := false
	for err == nil {
		var right *node
		switch t := p.peek(); t.kind {
		case times, divide, modulo:
			p.take()
			divided = t.kind == divide
			right, err = p.signed()
			left = &node{kind: t.kind, left: left, right: right}
		case of:
			if left.kind != percent {
				return nil, &SyntaxError{"“of” needs a percentage before it"}
			}
			p.take()
			right, err = p.signed()
			left = &node{kind: of, left: left, right: right}
		case open, squareRoot, cubeRoot:
			if divided {
				return nil, &SyntaxError{"a ÷ b(c) can mean two things: write (a ÷ b) × (c), or a ÷ (b × (c))"}
			}
			right, err = p.power()
			left = &node{kind: times, left: left, right: right}
		default:
			return left, nil
		}
	}
	return nil, err
}

// signed counts the depth of the tree: every recursion passes here or through
// power.
func (p *parser) signed() (*node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	switch p.peek().kind {
	case plus:
		p.take()
		return p.signed()
	case minus:
		p.take()
		n, err := p.signed()
		if err != nil {
			return nil, err
		}
		return &node{kind: minus, right: n}, nil
	default:
		return p.power()
	}
}

func (p *parser) power() (*node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	base, err := p.postfix()
	if err != nil || p.peek().kind != power {
		return base, err
	}
	p.take()
	exponent, err := p.signed()
	if err != nil {
		return nil, err
	}
	return &node{kind: power, left: base, right: exponent}, nil
}

func (p *parser) postfix() (*node, error) {
	n, err := p.primary()
	for err == nil {
		switch t := p.peek(); t.kind {
		case factorial:
			if n.kind == factorial && !n.grouped {
				return nil, &SyntaxError{"!! can mean two things: write (5!)! for the factorial of a factorial"}
			}
			n = &node{kind: factorial, left: n}
		case squared:
			n = &node{kind: power, left: n, right: small(2)}
		case cubed:
			n = &node{kind: power, left: n, right: small(3)}
		case percent:
			if p.remainder(t) {
				p.tokens[0].kind = modulo
				return n, nil
			}
			n = &node{kind: percent, left: n}
		default:
			return n, nil
		}
		p.take()
	}
	return nil, err
}

// remainder reports whether the sign % at the front stands between two
// operands, as in 17 % 5 or 17 % -5, and thus means modulo.
func (p *parser) remainder(t token) bool {
	if len(p.tokens) < 2 {
		return false
	}
	next := p.tokens[1]
	if next.startsOperand() {
		return true
	}
	return next.kind == minus && t.spaced && next.spaced &&
		len(p.tokens) > 2 && p.tokens[2].startsOperand() && !p.tokens[2].spaced
}

func (p *parser) primary() (*node, error) {
	switch t := p.take(); t.kind {
	case number:
		return &node{kind: number, value: t.value, text: t.text}, nil
	case open:
		n, err := p.sum()
		if err != nil {
			return nil, err
		}
		if p.take().kind != closing {
			return nil, &SyntaxError{"a parenthesis is not closed"}
		}
		n.grouped = true
		return n, nil
	case squareRoot, cubeRoot:
		operand := p.signed
		if p.peek().kind == open { // √(16) ÷ 2, √(2)^2: the root is of the parenthesis
			operand = p.parenthesis
		}
		n, err := operand()
		if err != nil {
			return nil, err
		}
		return &node{kind: t.kind, right: n}, nil
	case end:
		return nil, &SyntaxError{"a number is missing at the end"}
	default:
		return nil, &SyntaxError{"a number is missing before or after “" + t.kind.String() + "”"}
	}
}

func (p *parser) parenthesis() (*node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	return p.primary()
}

func (p *parser) enter() error {
	if p.depth++; p.depth > 2*maxDepth {
		return &SyntaxError{"the parentheses are too deep"}
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

func small(n int64) *node {
	v := new(big.Rat).SetInt64(n)
	return &node{kind: number, value: v, text: v.Num().String()}
}
