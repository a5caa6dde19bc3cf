package aws

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/imagectl/imagectl/images/upload"
	"github.com/imagectl/imagectl/images/upload/rest"
)

// pointer is what a family's parameter says.
type pointer struct {
	current, previous string
	// ours: imagectl wrote what it says now.
	ours bool
}

// mark begins the descriptions of parameters that are ours.
const mark = "imagectl:"

func (t *Target) parameter(family string) string { return t.conf.Prefix + "/" + family }

// manager calls Systems Manager.
func (t *Target) manager(ctx context.Context, action string, ask, into any) error {
	body, err := json.Marshal(ask)
	if err != nil {
		return fmt.Errorf("calling Systems Manager's %s: %w", action, err)
	}
	a, err := t.call(ctx, ssm, "/", rest.Request{
		Method: http.MethodPost, Body: body, Repeatable: true,
		Header: http.Header{"Content-Type": {"application/x-amz-json-1.1"}, "X-Amz-Target": {"AmazonSSM." + action}},
	})
	if err != nil {
		return fmt.Errorf("calling Systems Manager's %s: %w", action, err)
	}
	if err := json.Unmarshal(a.Body, into); err != nil {
		return fmt.Errorf("calling Systems Manager's %s: %w: its answer cannot be read: %w", action, upload.ErrServer, err)
	}
	return nil
}

// pointer reads a parameter's history, which Amazon keeps for the last 100 values.
func (t *Target) pointer(ctx context.Context, family string) (pointer, error) {
	type entry struct {
		Value, Description string
		Version            int64
	}
	ask := struct {
		Name       string
		MaxResults int
		NextToken  string `json:",omitempty"`
	}{Name: t.parameter(family), MaxResults: 50}
	var now, before entry
	for {
		var page struct {
			Parameters []entry
			NextToken  string
		}
		err := t.manager(ctx, "GetParameterHistory", ask, &page)
		if errors.Is(err, upload.ErrNotFound) {
			return pointer{}, nil
		}
		if err != nil {
			return pointer{}, err
		}
		// In the order of their versions.
		for _, e := range page.Parameters {
			if now.Value != "" && e.Value != now.Value {
				before = now
			}
			now = e
		}
		if page.NextToken == "" {
			break
		}
		ask.NextToken = page.NextToken
	}
	return pointer{current: now.Value, previous: before.Value, ours: strings.HasPrefix(now.Description, mark)}, nil
}

// point writes a parameter. Its type lets EC2 take it in the place of an image's ID.
func (t *Target) point(ctx context.Context, o upload.Object) error {
	ask := struct {
		Name, Value, Description, Type, DataType string
		Overwrite                                bool
	}{t.parameter(o.Name), o.ID, mark + " " + o.Name + " " + o.Version, "String", "aws:ec2:image", true}
	return t.manager(ctx, "PutParameter", ask, &struct{}{})
}
