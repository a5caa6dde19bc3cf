package aws

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// fake is one region of an account, as far as this package speaks to it, from
// Amazon's API references: EC2, the EBS direct API, Systems Manager.
type fake struct {
	mu sync.Mutex
	// now goes on by a second with each thing that is made.
	now       time.Time
	images    map[string]*fakeImage
	snaps     map[string]*fakeSnap
	params    map[string][]fakeParam
	instances map[string]string // by ID, the image
	lastID    int
	puts      []int64 // indices of the blocks, as they came
	// full: there is a quota of snapshots.
	full bool
	// throttle answers that many requests with "later".
	throttle int
}

type fakeImage struct {
	ID, Name, State, Snapshot string
	created                   time.Time
	tags                      map[string]string
}

type fakeSnap struct {
	ID, Status, token string
	started           time.Time
	size              int64
	tags              map[string]string
	blocks            map[int64][]byte
	sealed            bool
}

type fakeParam struct {
	Name, Value, Description, Type, DataType string
	Overwrite                                bool
	Version                                  int64
}

const (
	region    = "eu-central-1"
	accessKey = "AKIAOPERATOR"
)

func newFake() *fake {
	return &fake{now: time.Unix(1_790_000_000, 0).UTC(), images: map[string]*fakeImage{}, snaps: map[string]*fakeSnap{}, params: map[string][]fakeParam{}, instances: map[string]string{}}
}

func (f *fake) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fake) id(kind string) string {
	f.lastID++
	f.now = f.now.Add(time.Second)
	return fmt.Sprintf("%s-%017x", kind, f.lastID)
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := ec2
	switch {
	case strings.HasPrefix(r.URL.Path, "/snapshots"):
		s = ebs
	case r.Header.Get("X-Amz-Target") != "":
		s = ssm
	}
	if f.throttle > 0 {
		f.throttle--
		no(w, s, map[service]int{ec2: 503, ebs: 400, ssm: 400}[s], map[service]string{ec2: "RequestLimitExceeded", ebs: "RequestThrottledException", ssm: "ThrottlingException"}[s])
		return
	}
	if code := signed(r, s, body); code != "" {
		no(w, s, map[service]int{ec2: 401, ebs: 403, ssm: 400}[s], code)
		return
	}
	switch s {
	case ec2:
		form, err := url.ParseQuery(string(body))
		if err != nil || r.Method != http.MethodPost || form.Get("Version") != "2016-11-15" {
			no(w, s, 400, "InvalidAction")
			return
		}
		f.ec2(w, form)
	case ebs:
		f.ebs(w, r, body)
	case ssm:
		f.ssm(w, strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSSM."), body)
	}
}

// signed wants a signature for this service that covers the body and what goes with
// it; which one it is, only Amazon can tell.
func signed(r *http.Request, s service, body []byte) (code string) {
	a := r.Header.Get("Authorization")
	if a == "" {
		return "MissingAuthenticationToken"
	}
	var who, headers, signature string
	fields := strings.Split(strings.TrimPrefix(a, "AWS4-HMAC-SHA256 "), ", ")
	for _, f := range fields {
		k, v, _ := strings.Cut(f, "=")
		switch k {
		case "Credential":
			who = v
		case "SignedHeaders":
			headers = v
		case "Signature":
			signature = v
		}
	}
	scope := strings.Split(who, "/")
	if len(scope) != 5 || scope[2] != region || scope[3] != string(s) || scope[4] != "aws4_request" || len(signature) != 64 {
		return "SignatureDoesNotMatch"
	}
	if scope[0] != accessKey {
		return map[service]string{ec2: "AuthFailure", ebs: "UnrecognizedClientException", ssm: "UnrecognizedClientException"}[s]
	}
	covered := strings.Split(headers, ";")
	for k := range r.Header {
		k = strings.ToLower(k)
		if (strings.HasPrefix(k, "x-amz-") || k == "content-type") && !slices.Contains(covered, k) {
			return "SignatureDoesNotMatch"
		}
	}
	sum := sha256.Sum256(body)
	if r.Header.Get("X-Amz-Content-Sha256") != hex.EncodeToString(sum[:]) || !slices.Contains(covered, "host") {
		return "SignatureDoesNotMatch"
	}
	return ""
}

func no(w http.ResponseWriter, s service, status int, code string) {
	message := "Amazon says " + code
	switch s {
	case ec2:
		w.WriteHeader(status)
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>%s</Code><Message>%s</Message></Error></Errors><RequestID>1</RequestID></Response>`, code, message)
	case ebs:
		w.Header().Set("X-Amzn-Errortype", code+":http://internal.amazon.com/coral/")
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"Message":%q}`, message)
	case ssm:
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"__type":"com.amazonaws.ssm#%s","message":%q}`, code, message)
	}
}

func (f *fake) ec2(w http.ResponseWriter, form url.Values) {
	switch action := form.Get("Action"); action {
	case "DescribeImages":
		var hits []*fakeImage
		for _, i := range f.images {
			if passes(form, i.tags, map[string]string{"name": i.Name, "image-id": i.ID, "block-device-mapping.snapshot-id": i.Snapshot}) {
				hits = append(hits, i)
			}
		}
		slices.SortFunc(hits, func(a, b *fakeImage) int { return strings.Compare(b.ID, a.ID) }) // Amazon promises no order
		from, to, next := page(form, len(hits))
		type disk struct {
			Snapshot string `xml:"ebs>snapshotId"`
		}
		type item struct {
			ID      string  `xml:"imageId"`
			Name    string  `xml:"name"`
			State   string  `xml:"imageState"`
			Created string  `xml:"creationDate"`
			Tags    []xmlKV `xml:"tagSet>item"`
			Disks   []disk  `xml:"blockDeviceMapping>item"`
		}
		var out struct {
			XMLName xml.Name `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeImagesResponse"`
			Items   []item   `xml:"imagesSet>item"`
			Next    string   `xml:"nextToken,omitempty"`
		}
		out.Next = next
		for _, i := range hits[from:to] {
			out.Items = append(out.Items, item{i.ID, i.Name, i.State, i.created.Format("2006-01-02T15:04:05.000Z"), kvs(i.tags), []disk{{i.Snapshot}}})
			if i.State == "pending" {
				i.State = "available"
			}
		}
		answer(w, out)
	case "DescribeSnapshots":
		var hits []*fakeSnap
		for _, s := range f.snaps {
			if passes(form, s.tags, map[string]string{"snapshot-id": s.ID, "status": s.Status}) {
				hits = append(hits, s)
			}
		}
		slices.SortFunc(hits, func(a, b *fakeSnap) int { return strings.Compare(b.ID, a.ID) })
		from, to, next := page(form, len(hits))
		type item struct {
			ID      string  `xml:"snapshotId"`
			Status  string  `xml:"status"`
			Started string  `xml:"startTime"`
			Size    int64   `xml:"volumeSize"`
			Tags    []xmlKV `xml:"tagSet>item"`
		}
		var out struct {
			XMLName xml.Name `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeSnapshotsResponse"`
			Items   []item   `xml:"snapshotSet>item"`
			Next    string   `xml:"nextToken,omitempty"`
		}
		out.Next = next
		for _, s := range hits[from:to] {
			out.Items = append(out.Items, item{s.ID, s.Status, s.started.Format(time.RFC3339), s.size, kvs(s.tags)})
			if s.sealed && s.Status == "pending" {
				s.Status = "completed"
			}
		}
		answer(w, out)
	case "RegisterImage":
		f.register(w, form)
	case "DeregisterImage":
		if f.images[form.Get("ImageId")] == nil {
			no(w, ec2, 400, "InvalidAMIID.Unavailable")
			return
		}
		delete(f.images, form.Get("ImageId"))
		done(w, action)
	case "DeleteSnapshot":
		id := form.Get("SnapshotId")
		for _, i := range f.images {
			if i.Snapshot == id {
				no(w, ec2, 400, "InvalidSnapshot.InUse")
				return
			}
		}
		if f.snaps[id] == nil {
			no(w, ec2, 400, "InvalidSnapshot.NotFound")
			return
		}
		delete(f.snaps, id)
		done(w, action)
	case "DescribeInstances":
		type item struct {
			ID string `xml:"instancesSet>item>instanceId"`
		}
		var out struct {
			XMLName xml.Name `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ DescribeInstancesResponse"`
			Items   []item   `xml:"reservationSet>item"`
		}
		for id, image := range f.instances {
			if passes(form, nil, map[string]string{"image-id": image, "instance-state-name": "stopped"}) {
				out.Items = append(out.Items, item{id})
			}
		}
		answer(w, out)
	default:
		no(w, ec2, 400, "InvalidAction")
	}
}

func (f *fake) register(w http.ResponseWriter, form url.Values) {
	want := map[string]string{
		"Architecture": "x86_64", "VirtualizationType": "hvm", "BootMode": "uefi-preferred", "EnaSupport": "true", "ImdsSupport": "v2.0",
		"RootDeviceName": "/dev/xvda", "BlockDeviceMapping.1.DeviceName": "/dev/xvda",
		"BlockDeviceMapping.1.Ebs.VolumeType": "gp3", "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "true", "TagSpecification.1.ResourceType": "image",
	}
	for k := range form {
		if want[k] == "" && !slices.Contains([]string{"Action", "Version", "Name", "Description", "BlockDeviceMapping.1.Ebs.SnapshotId"}, k) && !strings.HasPrefix(k, "TagSpecification.1.Tag.") {
			no(w, ec2, 400, "UnknownParameter")
			return
		}
	}
	for k, v := range want {
		if form.Get(k) != v {
			no(w, ec2, 400, "InvalidParameterValue")
			return
		}
	}
	for _, i := range f.images {
		if i.Name == form.Get("Name") {
			no(w, ec2, 400, "InvalidAMIName.Duplicate")
			return
		}
	}
	s := f.snaps[form.Get("BlockDeviceMapping.1.Ebs.SnapshotId")]
	if s == nil {
		no(w, ec2, 400, "InvalidSnapshot.NotFound")
		return
	}
	if s.Status != "completed" {
		no(w, ec2, 400, "InvalidParameterValue")
		return
	}
	i := &fakeImage{ID: f.id("ami"), Name: form.Get("Name"), State: "pending", Snapshot: s.ID, tags: map[string]string{}}
	i.created = f.now
	for n := 1; form.Has(fmt.Sprintf("TagSpecification.1.Tag.%d.Key", n)); n++ {
		i.tags[form.Get(fmt.Sprintf("TagSpecification.1.Tag.%d.Key", n))] = form.Get(fmt.Sprintf("TagSpecification.1.Tag.%d.Value", n))
	}
	f.images[i.ID] = i
	answer(w, struct {
		XMLName xml.Name `xml:"http://ec2.amazonaws.com/doc/2016-11-15/ RegisterImageResponse"`
		ID      string   `xml:"imageId"`
	}{ID: i.ID})
}

func (f *fake) ebs(w http.ResponseWriter, r *http.Request, body []byte) {
	steps := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	if len(steps) == 1 && r.Method == http.MethodPost {
		f.start(w, body)
		return
	}
	id := steps[1]
	if len(steps) == 3 && steps[1] == "completion" {
		id = steps[2]
	}
	s := f.snaps[id]
	if s == nil {
		no(w, ebs, 404, "ResourceNotFoundException")
		return
	}
	switch {
	case len(steps) == 3 && steps[1] == "completion" && r.Method == http.MethodPost:
		sums := sha256.New()
		for _, i := range slices.Sorted(maps.Keys(s.blocks)) {
			sum := sha256.Sum256(s.blocks[i])
			sums.Write(sum[:])
		}
		if s.Status != "pending" || s.sealed || r.Header.Get("X-Amz-Changedblockscount") != strconv.Itoa(len(s.blocks)) ||
			r.Header.Get("X-Amz-Checksum-Aggregation-Method") != "LINEAR" || r.Header.Get("X-Amz-Checksum") != base64.StdEncoding.EncodeToString(sums.Sum(nil)) {
			no(w, ebs, 400, "ValidationException")
			return
		}
		s.sealed = true
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"Status":"pending"}`)
	case len(steps) == 4 && r.Method == http.MethodPut:
		index, err := strconv.ParseInt(steps[3], 10, 64)
		sum := sha256.Sum256(body)
		if err != nil || index < 0 || index >= s.size<<30/blockSize || len(body) != blockSize || r.Header.Get("X-Amz-Data-Length") != strconv.Itoa(len(body)) ||
			r.Header.Get("X-Amz-Checksum-Algorithm") != "SHA256" || r.Header.Get("X-Amz-Checksum") != base64.StdEncoding.EncodeToString(sum[:]) || s.Status != "pending" || s.sealed {
			no(w, ebs, 400, "ValidationException")
			return
		}
		s.blocks[index] = body
		f.puts = append(f.puts, index)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprint(w, `{}`)
	case s.Status != "completed":
		no(w, ebs, 400, "ValidationException")
	case len(steps) == 3:
		all := slices.Sorted(maps.Keys(s.blocks))
		form := url.Values{"NextToken": {r.URL.Query().Get("pageToken")}}
		from, to, next := page(form, len(all))
		type block struct {
			BlockIndex int64
			BlockToken string
		}
		var out struct {
			Blocks    []block
			NextToken string `json:",omitempty"`
			BlockSize int
		}
		out.NextToken, out.BlockSize = next, blockSize
		for _, i := range all[from:to] {
			out.Blocks = append(out.Blocks, block{i, "AAAB/+" + strconv.FormatInt(i, 10) + "=="})
		}
		_ = json.NewEncoder(w).Encode(out)
	case len(steps) == 4:
		index, _ := strconv.ParseInt(steps[3], 10, 64)
		b, ok := s.blocks[index]
		if !ok || r.URL.Query().Get("blockToken") != "AAAB/+"+steps[3]+"==" {
			no(w, ebs, 400, "ValidationException")
			return
		}
		_, _ = w.Write(b)
	}
}

func (f *fake) start(w http.ResponseWriter, body []byte) {
	var ask struct {
		VolumeSize, Timeout int64
		ClientToken         string
		Tags                []struct{ Key, Value string }
	}
	if json.Unmarshal(body, &ask) != nil || ask.VolumeSize < 1 || ask.Timeout < 10 || ask.ClientToken == "" {
		no(w, ebs, 400, "ValidationException")
		return
	}
	if f.full {
		no(w, ebs, 402, "ServiceQuotaExceededException")
		return
	}
	var s *fakeSnap
	for _, there := range f.snaps {
		if there.token == ask.ClientToken {
			s = there
		}
	}
	if s == nil {
		s = &fakeSnap{ID: f.id("snap"), Status: "pending", token: ask.ClientToken, size: ask.VolumeSize, tags: map[string]string{}, blocks: map[int64][]byte{}}
		s.started = f.now
		for _, t := range ask.Tags {
			s.tags[t.Key] = t.Value
		}
		f.snaps[s.ID] = s
	}
	w.WriteHeader(http.StatusCreated)
	fmt.Fprintf(w, `{"SnapshotId":%q,"BlockSize":%d,"Status":"pending"}`, s.ID, blockSize)
}

func (f *fake) ssm(w http.ResponseWriter, action string, body []byte) {
	var p fakeParam
	var ask struct{ NextToken string }
	if json.Unmarshal(body, &p) != nil || json.Unmarshal(body, &ask) != nil || !strings.HasPrefix(p.Name, "/") {
		no(w, ssm, 400, "ValidationException")
		return
	}
	all := f.params[p.Name]
	switch action {
	case "PutParameter":
		if p.DataType != "aws:ec2:image" || p.Type != "String" || f.images[p.Value] == nil {
			no(w, ssm, 400, "ValidationException")
			return
		}
		if len(all) > 0 && !p.Overwrite {
			no(w, ssm, 400, "ParameterAlreadyExists")
			return
		}
		p.Version = int64(len(all) + 1)
		f.params[p.Name] = append(all, p)
		fmt.Fprintf(w, `{"Version":%d,"Tier":"Standard"}`, p.Version)
	case "GetParameterHistory":
		if len(all) == 0 {
			no(w, ssm, 400, "ParameterNotFound")
			return
		}
		from, to, next := page(url.Values{"NextToken": {ask.NextToken}}, len(all))
		_ = json.NewEncoder(w).Encode(map[string]any{"Parameters": all[from:to], "NextToken": next})
	default:
		no(w, ssm, 400, "UnknownOperationException")
	}
}

type xmlKV struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

func kvs(m map[string]string) []xmlKV {
	var out []xmlKV
	for k, v := range m {
		out = append(out, xmlKV{k, v})
	}
	return out
}

// passes holds a thing against the filters of a request.
func passes(form url.Values, tags, fields map[string]string) bool {
	for n := 1; form.Has(fmt.Sprintf("Filter.%d.Name", n)); n++ {
		name := form.Get(fmt.Sprintf("Filter.%d.Name", n))
		got, known := fields[name]
		if key, isTag := strings.CutPrefix(name, "tag:"); isTag {
			got, known = tags[key]
		}
		hit := false
		for m := 1; form.Has(fmt.Sprintf("Filter.%d.Value.%d", n, m)); m++ {
			hit = hit || known && got == form.Get(fmt.Sprintf("Filter.%d.Value.%d", n, m))
		}
		if !hit {
			return false
		}
	}
	return true
}

// page is two of a list.
func page(form url.Values, n int) (from, to int, next string) {
	from, _ = strconv.Atoi(form.Get("NextToken"))
	to = min(from+2, n)
	if to < n {
		next = strconv.Itoa(to)
	}
	return from, to, next
}

func answer(w http.ResponseWriter, v any) {
	if err := xml.NewEncoder(w).Encode(v); err != nil {
		panic(err)
	}
}

func done(w http.ResponseWriter, action string) {
	fmt.Fprintf(w, "<%sResponse><return>true</return></%sResponse>", action, action)
}
