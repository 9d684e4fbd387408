package node

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// Version of the program. Releases set it with -ldflags "-X mintai/node.Version=…".
var Version = "0.1.0-dev"

// versionText is what -version prints: version, commit, Go version.
func versionText() string {
	commit := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		dirty := false
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				commit = s.Value[:min(12, len(s.Value))]
			case "vcs.modified":
				dirty = s.Value == "true"
			}
		}
		if dirty {
			commit += "-dirty"
		}
	}
	return fmt.Sprintf("mintai %s (commit %s, %s, %s/%s)\n", Version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
