package identity

import (
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/windows"
)

// checkOwner demands that the file belongs to the user this process runs as,
// or to Administrators, who own what an elevated process makes.
func checkOwner(path string, _ fs.FileInfo) error {
	descriptor, err := windows.GetNamedSecurityInfo(path, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("%w: the owner of %s cannot be found out: %w", ErrRuntimeUnsafe, path, err)
	}
	owner, _, err := descriptor.Owner()
	if err != nil {
		return fmt.Errorf("%w: the owner of %s cannot be found out: %w", ErrRuntimeUnsafe, path, err)
	}
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return fmt.Errorf("%w: the current user cannot be found out: %w", ErrRuntimeUnsafe, err)
	}
	if owner == nil || !(owner.Equals(user.User.Sid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid)) {
		return fmt.Errorf("%w: %s belongs to another user", ErrRuntimeUnsafe, path)
	}
	return nil
}

// exposed is always false: Windows has no permission bits, and files below a
// user's profile inherit an access list without other users.
func exposed(fs.FileInfo, fs.FileMode) bool { return false }

// openNoFollow opens a file for reading; making symbolic links takes a
// privilege on Windows.
func openNoFollow(path string) (*os.File, error) { return os.Open(path) }
