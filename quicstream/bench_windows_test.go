package quicstream

import (
	"time"

	"golang.org/x/sys/windows"
)

// cpuTime is the user and system time of this process so far.
func cpuTime() time.Duration {
	var created, exited, kernel, user windows.Filetime
	if err := windows.GetProcessTimes(windows.CurrentProcess(), &created, &exited, &kernel, &user); err != nil {
		return 0
	}
	const tick = 100 // nanoseconds
	ticks := func(f windows.Filetime) int64 { return int64(f.HighDateTime)<<32 | int64(f.LowDateTime) }
	return time.Duration(tick * (ticks(kernel) + ticks(user)))
}
