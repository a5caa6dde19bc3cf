package vsphere

import "context"

// alive runs send, with a sign of life at each beat: what vCenter waits for ends without
// them. A sign that fails ends send, and is why.
func alive(ctx context.Context, beat, sign, send func(context.Context) error) error {
	sending, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	signs := make(chan struct{})
	go func() {
		defer close(signs)
		for beat(sending) == nil {
			if err := sign(sending); err != nil && sending.Err() == nil {
				stop(err)
				return
			}
		}
	}()
	err := send(sending)
	if err != nil && ctx.Err() == nil && sending.Err() != nil {
		err = context.Cause(sending)
	}
	stop(nil)
	<-signs
	return err
}
