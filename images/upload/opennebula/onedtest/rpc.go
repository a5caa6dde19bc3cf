package onedtest

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

type call struct {
	Method string `xml:"methodName"`
	Params []struct {
		String  *string `xml:"string"`
		Int     *int    `xml:"int"`
		Boolean *int    `xml:"boolean"`
	} `xml:"params>param>value"`
}

func (c call) text(n int) string {
	if n < len(c.Params) && c.Params[n].String != nil {
		return *c.Params[n].String
	}
	return ""
}

func (c call) number(n int) int {
	if n < len(c.Params) && c.Params[n].Int != nil {
		return *c.Params[n].Int
	}
	return -1
}

// answer is a value, or a refusal with a code.
type answer struct {
	value any
	code  int
	text  string
}

func refuse(code int, format string, args ...any) answer {
	return answer{code: code, text: fmt.Sprintf(format, args...)}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	var c call
	if err != nil || r.Method != http.MethodPost || r.URL.Path != "/RPC2" || xml.Unmarshal(b, &c) != nil {
		http.Error(w, "no XML-RPC call", http.StatusBadRequest)
		return
	}
	a := s.dispatch(c)
	w.Header().Set("Content-Type", "text/xml; charset=utf-8")
	result := ""
	switch v := a.value.(type) {
	case int:
		result = fmt.Sprintf("<i4>%d</i4>", v)
	case string:
		result = "<string>" + escape(v) + "</string>"
	default:
		result = "<string>" + escape("["+c.Method+"] "+a.text) + "</string>"
	}
	ok := 0
	if a.value != nil {
		ok = 1
	}
	fmt.Fprintf(w, "%s<methodResponse>\r\n<params>\r\n<param><value><array><data>\r\n<value><boolean>%d</boolean></value>\r\n<value>%s</value>\r\n<value><i4>%d</i4></value>\r\n</data></array></value></param>\r\n</params>\r\n</methodResponse>\r\n", xml.Header, ok, result, a.code)
}

func (s *Server) dispatch(c call) answer {
	session := c.text(0)
	if session != Session && session != Other {
		return refuse(authentication, "User couldn't be authenticated, aborting call.")
	}
	if c.Method == "one.image.allocate" {
		return s.allocateImage(session, c.text(1), c.number(2))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch c.Method {
	case "one.system.version":
		return answer{value: "7.5.80"}
	case "one.user.info":
		if c.number(1) != -1 {
			return refuse(authorization, "User [2] : Not authorized to perform MANAGE USER [%d].", c.number(1))
		}
		return answer{value: fmt.Sprintf("<USER><ID>%d</ID><GID>%d</GID><GROUPS><ID>%[2]d</ID></GROUPS><GNAME>%s</GNAME><NAME>%s</NAME></USER>", uid(session), gid, Group, user(session))}
	case "one.datastorepool.info":
		return answer{value: fmt.Sprintf("<DATASTORE_POOL><DATASTORE><ID>0</ID><NAME>system</NAME><TYPE>1</TYPE><TOTAL_MB>9</TOTAL_MB><FREE_MB>9</FREE_MB></DATASTORE>"+
			"<DATASTORE><ID>1</ID><NAME>%s</NAME><TYPE>0</TYPE><TOTAL_MB>%d</TOTAL_MB><FREE_MB>%d</FREE_MB><TEMPLATE><DRIVER>qcow2</DRIVER></TEMPLATE></DATASTORE></DATASTORE_POOL>", Datastore, s.totalMB, s.freeMB)}
	case "one.imagepool.info":
		var b strings.Builder
		for id := range s.next {
			if i := s.images[id]; i != nil && (!i.hidden || i.owner == session) {
				b.WriteString(i.xml())
			}
		}
		return answer{value: "<IMAGE_POOL>" + b.String() + "</IMAGE_POOL>"}
	case "one.image.info":
		switch i := s.images[c.number(1)]; {
		case i != nil && i.hidden && i.owner != session:
			return refuse(authorization, "User [2] : Not authorized to perform USE IMAGE [%d].", c.number(1))
		case i != nil:
			return answer{value: i.xml()}
		}
		return refuse(noExists, "Error getting image [%d].", c.number(1))
	case "one.image.delete":
		return s.deleteImage(session, c.number(1))
	case "one.templatepool.info":
		var b strings.Builder
		for id := range s.next {
			if t := s.templates[id]; t != nil {
				b.WriteString(t.xml())
			}
		}
		return answer{value: "<VMTEMPLATE_POOL>" + b.String() + "</VMTEMPLATE_POOL>"}
	case "one.template.allocate":
		return s.allocateTemplate(session, c.text(1))
	case "one.template.update":
		return s.updateTemplate(session, c.number(1), c.text(2), c.number(3))
	}
	return refuse(4096, "method %s is not known", c.Method)
}

func (i *image) xml() string {
	return fmt.Sprintf("<IMAGE><ID>%d</ID>%s<NAME>%s</NAME><TYPE>0</TYPE><PERSISTENT>0</PERSISTENT><REGTIME>%d</REGTIME><SIZE>%d</SIZE><STATE>%d</STATE><RUNNING_VMS>%d</RUNNING_VMS><DATASTORE_ID>1</DATASTORE_ID><DATASTORE>%s</DATASTORE><TEMPLATE>%s</TEMPLATE></IMAGE>",
		i.id, whose(i.owner), escape(i.name), i.regTime, i.sizeMB, i.state, i.vms, Datastore, i.attrs.xml())
}

func (t *vmTemplate) xml() string {
	return fmt.Sprintf("<VMTEMPLATE><ID>%d</ID>%s<NAME>%s</NAME><TEMPLATE>%s</TEMPLATE></VMTEMPLATE>", t.id, whose(t.owner), escape(t.name), t.attrs.xml())
}

// Group is the primary group of both users, as OpenNebula's default has it.
const (
	Group = "users"
	gid   = 1
)

func user(session string) string {
	name, _, _ := strings.Cut(session, ":")
	return escape(name)
}

func uid(session string) int {
	if session == Session {
		return 2
	}
	return 3
}

// whose is what a pool's documents say of an owner (src/image/Image.cc, to_xml).
func whose(session string) string {
	return fmt.Sprintf("<UID>%d</UID><GID>%d</GID><UNAME>%s</UNAME><GNAME>%s</GNAME>", uid(session), gid, user(session), Group)
}

func (s *Server) deleteImage(session string, id int) answer {
	i := s.images[id]
	switch {
	case i == nil:
		return refuse(noExists, "Error getting image [%d].", id)
	case i.owner != session:
		return refuse(authorization, "User [2] : Not authorized to perform MANAGE IMAGE [%d].", id)
	case i.kept:
		// OpenNebula/one, issue 2626, has the words.
		return refuse(authorization, "User [2] : IMAGE is locked. [%d].", id)
	case i.state == locked:
		// ImageAPI::del_image: while it is imported only who has ADMIN rights removes it,
		// by force. An owner has not.
		return refuse(internal, "Image locked, use --force flag to remove the image. Force delete may leave some files on Datastore")
	case i.vms > 0:
		return refuse(action, "Cannot delete image. There are %d VMs using it.", i.vms)
	}
	if i.state == ready {
		s.freeMB += i.sizeMB
	}
	delete(s.images, id)
	os.Remove(s.File(strconv.Itoa(id)))
	return answer{value: id}
}

func checkTemplate(text string) (attrs, answer) {
	a, err := parse(text)
	if err != nil {
		return nil, refuse(internal, "Parse error: %v", err)
	}
	if a.has("RAW/DATA") {
		return nil, refuse(authorization, "Template includes a restricted attribute RAW/DATA.")
	}
	return a, answer{}
}

func (s *Server) allocateTemplate(session, text string) answer {
	a, no := checkTemplate(text)
	if a == nil {
		return no
	}
	name := a.get("NAME")
	if name == "" || len(name) > 128 {
		return refuse(internal, "Error allocating a new virtual machine template. Invalid NAME")
	}
	for _, t := range s.templates {
		if t.owner == session && t.name == name {
			return refuse(allocate, "Error allocating a new virtual machine template. NAME is already taken by TEMPLATE %d.", t.id)
		}
	}
	id := s.next
	s.next++
	s.templates[id] = &vmTemplate{id: id, owner: session, name: name, attrs: a}
	return answer{value: id}
}

func (s *Server) updateTemplate(session string, id int, text string, kind int) answer {
	t := s.templates[id]
	switch {
	case t == nil:
		return refuse(noExists, "Error getting virtual machine template [%d].", id)
	case t.owner != session:
		return refuse(authorization, "Not authorized to perform MANAGE TEMPLATE [%d].", id)
	case kind != 0:
		return refuse(internal, "onedtest knows replacing only")
	}
	a, no := checkTemplate(text)
	if a == nil {
		return no
	}
	t.attrs = a
	return answer{value: id}
}
