package main

// What a lab can be: its options, the NAT kinds, the fixed addresses; and the
// few calls that enter a namespace.

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

type Config struct {
	Lab                    string
	A, B                   string
	RTT, RTTAB, RTTA, RTTB float64 // ms
	Jitter                 float64 // ms
	Loss, Burst, Reorder   float64 // percent, packets, percent
	Rate                   string  // "UP/DOWN" or "BOTH" Mbit, sites A, B, R
	RateA, RateB, RatePub  string
	QueueMS                float64
	MTU, MTUBlack          int
	UDPTimeout             time.Duration
	UDPBlock               string
	ProxyAuth              string // user:password of kind proxy-only; empty: none
	V6                     string
	Pub2                   bool
	SameNAT, LANIsolated   bool
	SameCGN                bool
	SameSubnet             bool
	NoHairpin, NoInRefresh bool
	TTL                    time.Duration
	BindPID                int
	Seed                   uint64
}

type kindSpec struct {
	nat     *natSpec // userspace NAT of the home router
	carrier *natSpec // userspace carrier NAT above it
	kernel  string   // nf, nf-random, nf-open, upnp: netfilter does the NAT
	fw      bool     // stateful firewall, no NAT
	block   string   // udp, proxy
	v6, no4 bool
	timeout time.Duration
	note    string
}

func ns(m, f, a string) *natSpec { return &natSpec{m, f, a} }

var kinds = map[string]kindSpec{
	"none":        {note: "public address, no NAT, no firewall"},
	"none-fw":     {fw: true, note: "public address behind a stateful firewall"},
	"eim-eif":     {nat: ns(EI, EI, "preserve"), note: "full cone"},
	"eim-adf":     {nat: ns(EI, AD, "preserve"), note: "address-restricted cone"},
	"eim-apdf":    {nat: ns(EI, APD, "preserve"), note: "port-restricted cone (usual home router)"},
	"adm-apdf":    {nat: ns(AD, APD, "random"), note: "address-dependent mapping"},
	"sym":         {nat: ns(APD, APD, "random"), note: "symmetric, random ports"},
	"sym-seq":     {nat: ns(APD, APD, "seq"), note: "symmetric, sequential ports"},
	"sym-pp":      {nat: ns(APD, APD, "preserve"), note: "symmetric, first mapping keeps the port, next ones sequential"},
	"cgnat":       {nat: ns(EI, APD, "preserve"), carrier: ns(EI, APD, "random"), note: "double NAT, carrier eim-apdf"},
	"cgnat-eif":   {nat: ns(EI, APD, "preserve"), carrier: ns(EI, EI, "random"), note: "double NAT, carrier eim-eif (RFC 6888)"},
	"cgnat-sym":   {nat: ns(EI, APD, "preserve"), carrier: ns(APD, APD, "random"), note: "double NAT, carrier symmetric"},
	"nf":          {kernel: "nf", note: "Linux netfilter masquerade, WAN input dropped"},
	"nf-open":     {kernel: "nf-open", note: "Linux netfilter masquerade, WAN input not filtered"},
	"nf-random":   {kernel: "nf-random", note: "Linux netfilter masquerade random,fully-random"},
	"upnp":        {kernel: "upnp", note: "Linux netfilter + miniupnpd (UPnP IGD, NAT-PMP, PCP)"},
	"short":       {nat: ns(EI, APD, "preserve"), timeout: 20 * time.Second, note: "eim-apdf, 20 s UDP mapping lifetime"},
	"udp-blocked": {nat: ns(EI, APD, "preserve"), block: "udp", note: "only TCP 443 out"},
	"proxy-only":  {nat: ns(EI, APD, "preserve"), block: "proxy", note: "only the router's HTTP CONNECT proxy (port 3128, to 443)"},
	"dual":        {nat: ns(EI, APD, "preserve"), v6: true, note: "IPv4 eim-apdf + IPv6 behind a stateful firewall"},
	"dual-sym":    {nat: ns(APD, APD, "random"), v6: true, note: "IPv4 symmetric + IPv6 behind a stateful firewall"},
	"ipv6-only":   {v6: true, no4: true, note: "IPv6 only, stateful firewall"},
}

var kindOrder = []string{"none", "none-fw", "eim-eif", "eim-adf", "eim-apdf", "adm-apdf", "sym", "sym-seq", "sym-pp",
	"cgnat", "cgnat-eif", "cgnat-sym", "nf", "nf-open", "nf-random", "upnp", "short", "udp-blocked", "proxy-only", "dual", "dual-sym", "ipv6-only"}

// Fixed addresses. They are "public" to address classifiers (documentation
// ranges are not), and go nowhere: no namespace has a way out.
const (
	pubIP, pubAlt   = "20.0.0.1", "20.0.0.2"
	pub2IP, pub2Alt = "20.0.2.1", "20.0.2.2"
	pub6, pub6Alt   = "2a00:20::1", "2a00:20::2"
	pub26, pub26Alt = "2a00:22::1", "2a00:22::2"
)

type siteAddr struct{ ext, cgn, wan, p6, lan string }

var siteAddrs = map[string]siteAddr{
	"A": {"30.0.0", "100.64.0.11", "10.255.1.1", "2a00:30", "192.168.1"},
	"B": {"40.0.0", "100.64.0.12", "10.255.2.1", "2a00:40", "192.168.2"},
	"R": {"50.0.0", "100.64.0.13", "10.255.3.1", "2a00:50", "10.77.0"},
}

// fence keeps the machine itself off the lab's addresses: a command started
// outside a lab by mistake gets "no route", and no packet leaves.
func fence() error {
	for _, p := range []string{"20.0.0.0/16", "30.0.0.0/16", "40.0.0.0/16", "50.0.0.0/16"} {
		if err := sh("ip", "route", "replace", "blackhole", p); err != nil {
			return err
		}
	}
	for _, p := range []string{"2a00:20::/32", "2a00:22::/32", "2a00:30::/32", "2a00:40::/32", "2a00:50::/32"} {
		// a machine without IPv6 has nothing to fence
		_ = sh("ip", "-6", "route", "replace", "blackhole", p)
	}
	return nil
}

func stateRoot() string {
	if d := os.Getenv("NATLAB_STATE"); d != "" {
		return d
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("natlab-%d", os.Getuid()))
}
func stateDir(lab string) string     { return filepath.Join(stateRoot(), lab) }
func nsName(lab, host string) string { return "natlab-" + lab + "-" + host }

func sh(name string, args ...string) error { return shIn("", name, args...) }

func shIn(stdin, name string, args ...string) error {
	c := exec.Command(name, args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %v: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

func sysSetns() uintptr {
	switch runtime.GOARCH {
	case "arm64":
		return 268
	}
	return 308
}

func setns(name string) error {
	f, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, e := syscall.RawSyscall(sysSetns(), f.Fd(), syscall.CLONE_NEWNET, 0); e != 0 {
		return fmt.Errorf("setns %s: %w", name, e)
	}
	return nil
}

// inNS runs f on a thread inside the namespace; the thread ends with it.
func inNS(name string, f func() error) error {
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := setns(name); err != nil {
			ch <- err
			return
		}
		ch <- f()
	}()
	return <-ch
}

func openTUN(nsn, dev string) (*os.File, error) {
	var f *os.File
	err := inNS(nsn, func() error {
		fd, err := syscall.Open("/dev/net/tun", syscall.O_RDWR|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		var ifr [40]byte
		copy(ifr[:15], dev)
		const iffTUN, iffNoPI = 0x0001, 0x1000
		*(*uint16)(unsafe.Pointer(&ifr[16])) = iffTUN | iffNoPI
		if _, _, e := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(fd), 0x400454ca, uintptr(unsafe.Pointer(&ifr[0]))); e != 0 {
			syscall.Close(fd)
			return fmt.Errorf("TUNSETIFF: %w", e)
		}
		f = os.NewFile(uintptr(fd), "tun:"+nsn)
		return nil
	})
	return f, err
}
