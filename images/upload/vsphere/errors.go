package vsphere

import (
	"context"
	"errors"
	"fmt"

	"github.com/vmware/govmomi/task"
	"github.com/vmware/govmomi/vim25/types"

	"github.com/imagectl/imagectl/images/upload"
)

// failed says what was being done, which kind of failure it was, and what vCenter
// said.
func failed(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	f := faultOf(err)
	if f == nil || ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	return fmt.Errorf("%s: %w: %w (%s)", doing, kindOf(f), err, faultName(f))
}

// faultOf is what vCenter refused with; nil for what is no answer of its.
func faultOf(err error) types.BaseMethodFault {
	var answer interface{ Fault() types.BaseMethodFault }
	if errors.As(err, &answer) {
		return answer.Fault()
	}
	return nil
}

// faultName is the name of a fault in the API's reference.
func faultName(f types.BaseMethodFault) string { return fmt.Sprintf("%T", f)[len("*types."):] }

func kindOf(f types.BaseMethodFault) error {
	switch f.(type) {
	case *types.InvalidLogin, *types.NotAuthenticated, *types.NoPermission:
		return upload.ErrAuth
	case *types.NoDiskSpace, *types.InsufficientStorageSpace, *types.LimitExceeded, *types.InsufficientStandbyResource:
		return upload.ErrSpace
	case *types.ManagedObjectNotFound:
		return upload.ErrNotFound
	case *types.ResourceInUse, *types.TaskInProgress, *types.FileLocked, *types.InvalidPowerState, *types.InvalidState:
		return upload.ErrInUse
	case *types.DuplicateName, *types.AlreadyExists:
		return upload.ErrTaken
	case *types.Timedout:
		return upload.ErrTimeout
	}
	return upload.ErrServer
}

// refused makes an error of a fault inside an answer, with its text.
func refused(f *types.LocalizedMethodFault) error {
	if f.LocalizedMessage == "" {
		f.LocalizedMessage = faultName(f.Fault)
	}
	return task.Error{LocalizedMethodFault: f}
}

// gone: the object is not there any more.
func gone(err error) bool {
	_, is := faultOf(err).(*types.ManagedObjectNotFound)
	return is
}
