package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/minio/minio-go/v7"

	"github.com/imagectl/imagectl/images/upload"
)

// failed says what was being done, which kind of failure it was, and what the
// store said.
func failed(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	var answer minio.ErrorResponse
	if !errors.As(err, &answer) || answer.StatusCode == 0 && answer.Code == "" {
		return fmt.Errorf("%s: %w", doing, upload.CallError(ctx, err))
	}
	text := answer.Code + ": " + answer.Message
	if answer.Message == "" {
		text = err.Error()
	}
	kind, hint := kindOf(answer)
	if hint != "" {
		text += " (" + hint + ")"
	}
	if kind == nil {
		if err := upload.StatusError(answer.StatusCode, text); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
		// A success that is another one than S3 has for this.
		kind = upload.ErrServer
	}
	return fmt.Errorf("%s: %w: %s", doing, kind, text)
}

// kindOf knows the codes whose status says less than they do; nil for the others.
// They are Amazon's, MinIO's and Ceph's, and XAdminUserNotFound is versitygw's.
func kindOf(answer minio.ErrorResponse) (kind error, hint string) {
	switch code := answer.Code; {
	case code == "RequestTimeTooSkewed":
		return upload.ErrAuth, "the clock of this machine or the store's is wrong"
	case code == "InvalidAccessKeyId", code == "SignatureDoesNotMatch", code == "AccessDenied", code == "ExpiredToken", code == "InvalidToken", code == "XAdminUserNotFound":
		return upload.ErrAuth, ""
	case code == "AuthorizationHeaderMalformed", code == "InvalidRegion":
		return upload.ErrAuth, "is the region right?"
	case strings.Contains(code, "QuotaExceeded"), strings.Contains(code, "StorageFull"), code == "EntityTooLarge", code == "InsufficientStorage":
		return upload.ErrSpace, ""
	case code == "NoSuchBucket":
		return upload.ErrNotFound, "make the bucket first"
	case code == "RequestTimeout":
		return upload.ErrTimeout, ""
	}
	return nil, ""
}

// missing: the key or the multipart upload does not exist; the bucket does.
func missing(err error) bool {
	answer := minio.ToErrorResponse(err)
	return answer.Code == "NoSuchKey" || answer.Code == "NoSuchUpload" ||
		answer.StatusCode == http.StatusNotFound && answer.Code != "NoSuchBucket"
}

// changed: a condition did not hold, because somebody else was quicker.
func changed(err error) bool {
	answer := minio.ToErrorResponse(err)
	return answer.StatusCode == http.StatusPreconditionFailed || answer.StatusCode == http.StatusConflict
}

// unconditional: the store knows no conditions for this request.
func unconditional(err error) bool {
	answer := minio.ToErrorResponse(err)
	return answer.StatusCode == http.StatusNotImplemented || answer.Code == "NotImplemented"
}
