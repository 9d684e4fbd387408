package backend

import (
	"context"

	"mintai/api"
)

type grantKey struct{}

// WithGrant returns a context that lets a request call one model, the one that
// the coordinator granted. The miner sets it after it has checked who asks;
// without it ServeHTTP refuses everything.
func WithGrant(ctx context.Context, model api.Model) context.Context {
	return context.WithValue(ctx, grantKey{}, model)
}

func grantOf(ctx context.Context) (api.Model, bool) {
	m, ok := ctx.Value(grantKey{}).(api.Model)
	return m, ok && m != ""
}
