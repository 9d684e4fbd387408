package signal

import "os"

// private accepts every file: on Windows the folder's access list protects it.
func private(*os.File) error { return nil }
