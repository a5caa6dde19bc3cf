# Two commands matter: "make demo" shows the main job, "make test" passes the
# tests. Both install what they need on a bare Debian 12 (Go, git and make are
# there already), work as root or through sudo, and use CACHE the second time.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
# One recipe at a time: the slow ones use all cores by themselves.
.NOTPARALLEL:

export CGO_ENABLED := 0
ROOT := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=PATH,CGO_ENABLED,GOPROXY,GOFLAGS,GONOSUMDB,GOSUMDB,IMAGECTL_UPSTREAM,IMAGECTL_TEST_RELEASE,IMAGECTL_TEST_ARM64)

# Everything slow to make, keyed by the digest of its inputs; safe to delete.
CACHE ?= /var/cache/imagectl-test
# An ordinary user's path lacks Go and the directories of mkfs and friends, and
# sudo keeps the path it is given. QEMU is that of test/qemu, where it can be had.
export PATH := $(CACHE)/qemu/bin:$(PATH):/usr/local/go/bin:/usr/local/sbin:/usr/sbin:/sbin
UPSTREAM := $(CACHE)/upstream
RELEASE := $(CACHE)/release
# Disks, consoles and logs of the last run of the scenario.
E2E_WORK ?= /var/tmp/imagectl-e2e
export IMAGECTL_UPSTREAM := $(UPSTREAM)
export IMAGECTL_TEST_RELEASE := $(RELEASE)
# iPXE and a kernel for the machines with arm64.
export IMAGECTL_TEST_ARM64 := $(CACHE)/arm64

GOFILES := $(shell find cmd butane images pxe bootstrap -name '*.go' -not -name '*_test.go') go.mod go.sum
# Programs know their commit, whatever GOFLAGS says: where git reads the checkout
# (not a tarball, nor what belongs to another user) and Go does (no linked
# worktree). A new commit is a new program.
COMMITS := $(wildcard $(shell git rev-parse --git-path logs/HEAD 2>/dev/null))
GOBUILD := go build -trimpath -buildvcs=$(shell git rev-parse --quiet --verify HEAD >/dev/null 2>&1 && echo true || echo false) -ldflags='-s -w -buildid='
say = @printf '\n== %s\n' "$(1)"

# A namespace of its own for network, processes and mounts: whatever a test
# starts ends with it, also when the test is killed.
ISOLATED := $(ROOT) unshare --net --pid --fork --mount-proc --kill-child -- sh -c 'ip link set lo up && exec "$$0" "$$@"'

.PHONY: build
build: bin/imagectl bin/bootstrapd ## both programs, in bin/

bin/imagectl: $(GOFILES) $(COMMITS) | bin/root
	$(GOBUILD) -o $@ ./cmd/imagectl

bin/bootstrapd: $(GOFILES) $(COMMITS) | bin/root
	$(GOBUILD) -o $@ ./cmd/bootstrapd

# They belong to whoever owns the checkout, also when root made them, or the
# owner could build nothing after one "sudo make".
bin/root:
	@install -d -o "$$(stat -c %u .)" bin bin/root

.PHONY: deps
deps: ## Debian packages that the tests use
	@test/packages $$(find . -name apt-packages.txt)
	@$(ROOT) test/qemu/newer $(CACHE)/qemu
	@$(ROOT) test/qemu/arm64 $(CACHE)/arm64

.PHONY: upstream
upstream: deps ## Kubernetes, etcd and friends, built from their modules
	$(call say,building Kubernetes and etcd and containerd from their Go modules (cold: 10 to 15 minutes on two cores))
	@$(ROOT) mkdir -p $(UPSTREAM)
	$(ROOT) test/upstream/build --out $(UPSTREAM) --cache $(CACHE)/upstream-cache all

.PHONY: release
release: upstream ## the Flatcar-shaped test release
	$(call say,building the test release (cold: 5 to 8 minutes on two cores))
	$(ROOT) test/release/build --out $(RELEASE) --cache $(CACHE)/release-cache --containerd $(UPSTREAM)/containerd

.PHONY: demo
demo: build release ## the main job, for a person to watch
	$(call say,from cluster.yaml to Ready nodes (about 12 minutes without KVM))
	go build -buildvcs=false -o bin/demo ./test/demo
	@trap '$(ROOT) ip netns delete imagectl-demo' EXIT; \
	$(ROOT) ip netns delete imagectl-demo 2>/dev/null || true; \
	$(ROOT) ip netns add imagectl-demo; \
	$(ROOT) ip netns exec imagectl-demo unshare --pid --fork --mount-proc --kill-child -- \
	    bin/demo --bin bin --release $(RELEASE) --upstream $(UPSTREAM) --cache $(CACHE)/imagectl --namespace imagectl-demo

.PHONY: unit
unit: ## no root and no network
	$(call say,unit tests (2 to 4 minutes))
	go vet ./...
	go vet -tags root,clock ./test/native # no other goal of `make test` builds it
	go test -timeout 30m ./...
	cd test/terraform && go test ./...

# FUZZTIME=10m for a night.
FUZZTIME ?= 20s

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s), one after the other, until one finds something
	$(call say,every fuzz target for $(FUZZTIME))
	test/fuzz $(FUZZTIME)

# Three at a time, and those that wait for firmware's time-outs (pxe) first.
ROOTTESTS := $(shell grep -rl --include='*_test.go' '^//go:build root$$' pxe cmd butane images bootstrap test/vm)

.PHONY: test-root
test-root: build release ## kernel mounts, namespaces, and firmware until the kernel starts: by PXE, HTTP and HTTPS, IPv4 and IPv6, by GRUB, on arm64, beside Kea and dnsmasq, behind a relay
	@test/packages images/upload/upload-packages.txt
	$(call say,tests that need root (about 8 minutes without KVM))
	@for p in $$(dirname $(ROOTTESTS) | sort -u); do \
	    go test -c -tags root -o bin/root/$${p//\//-}.test ./$$p; done
	@grep -o '^func Test[A-Z][A-Za-z0-9_]*' $(ROOTTESTS) | grep -v ':func TestMain$$' | sed -E 's|/[^/]*:func | |' | \
	    xargs -P 3 -L 1 $(ROOT) test/root-test

.PHONY: native
native: build upstream ## real etcd, Kubernetes and agents as processes: killed at every step, three control planes and five, one of three lost in every way
	$(call say,real parts as processes (about 12 minutes))
	IMAGECTL_KUBEADM=$(UPSTREAM)/kubernetes/v1.36.3/bin/linux/amd64/kubeadm go test -tags judge ./bootstrap/kubeadm
	IMAGECTL_ETCD=$(UPSTREAM)/etcd/v3.6.10 go test -tags judge ./bootstrap/etcd ./bootstrap/backup/etcdsnap
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 60m -test.skip 'ByHand|Certificates|Drills[A-Z]|Encryption|Joins|VIP' -test.v

# The versions that cluster.yaml takes besides the one that all else is tested with.
VERSIONS ?= v1.34.4 v1.35.4

.PHONY: native-versions
native-versions: build upstream ## older versions of Kubernetes, each with its own kubeadm, kubelet and control plane: one rack, three control planes
	$(call say,building $(VERSIONS) (cold: 10 minutes each on two cores) and a rack of each (3 minutes each))
	$(ROOT) test/upstream/build --out $(UPSTREAM) --cache $(CACHE)/upstream-cache $(foreach v,$(VERSIONS),kubernetes-$(v) images-$(v))
	go test -c -tags root -o bin/root/native.test ./test/native
	@for v in $(VERSIONS); do \
	    IMAGECTL_KUBEADM=$(UPSTREAM)/kubernetes/$$v/bin/linux/amd64/kubeadm go test -count=1 -tags judge ./bootstrap/kubeadm && \
	    (cd test/native && $(ISOLATED) env NATIVE_KUBERNETES=$$v $(CURDIR)/bin/root/native.test -test.timeout 90m -test.run '^Test(ARackComesUp|HAThreeControlPlanes)$$' -test.v) || exit 1; done

.PHONY: native-ha
native-ha: build upstream ## three control planes as processes: joined under kills, one without power, one without disk; from one to five and back
	$(call say,three control planes as processes and five (about 12 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 90m -test.run HA -test.v

.PHONY: native-certs
native-certs: build upstream ## control planes with and without the CA's key: real kubeadm, certificates renewed and in use; etcd's renewed while it runs
	$(call say,control planes' certificates signed by the server and by kubeadm; etcd's (about 18 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 60m -test.run Certificates -test.v

.PHONY: native-encryption
native-encryption: build upstream ## three control planes from before: Secrets encrypted, the key replaced, while Secrets are written and read
	$(call say,encryption at rest turned on and its key replaced on three control planes (about 10 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 90m -test.run Encryption -test.v

.PHONY: drills
drills: build upstream versitygw ## one of three control planes and a worker without power, cut off, stopped, with a full disk, without a server; two of three lost; out of a snapshot, also of those that are taken by schedule
	$(call say,what can happen to one and to two of three control planes, and to a worker (about 20 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) env NATIVE_VERSITYGW=$(CURDIR)/bin/versitygw $(CURDIR)/bin/root/native.test -test.timeout 90m -test.run Drills -test.v

.PHONY: native-vip
native-vip: build upstream ## an address that moves, put on three living control planes; its holder killed, without power, stopped, cut off
	$(call say,an address of the API that moves between three control planes (about 6 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 90m -test.run VIP -test.v

.PHONY: native-by-hand
native-by-hand: build upstream ## three control planes and two workers as processes, beside the same typed by hand with kubeadm; the median of three (RUNS=3)
	$(call say,five machines twice and that $(or $(RUNS),3) times: by imagectl and by hand (about a minute and a half each time))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) env NATIVE_RUNS=$(or $(RUNS),3) $(CURDIR)/bin/root/native.test -test.timeout 5h -test.run ByHand -test.v

.PHONY: years
years: ## a server that is away for thirty days, and five years, by a clock of the test's own
	$(call say,thirty days without a server and five years (about 4 minutes))
	go test -count=1 -timeout 30m -tags drill -run '^Test(ThirtyDaysWithoutTheServer|FiveYears)$$' -v ./bootstrap/serverapi

# What is built for a shifted clock is kept by what shifts it.
CLOCK := $(CURDIR)/bin/clock
CLOCKED := $(CACHE)/clocked-$(shell sha256sum test/native/clock/overlay | cut -c 1-12)

.PHONY: native-years
native-years: upstream ## five years of real etcd, Kubernetes, agents and server, by a clock that leaps; etcd's CA and imagectl's replaced
	$(call say,Kubernetes and etcd built for a clock that leaps (cold: 6 minutes) and five years)
	test/native/clock/overlay $(CLOCK)
	$(ROOT) mkdir -p $(CLOCKED)
	$(ROOT) env GOFLAGS=-overlay=$(CLOCK)/overlay.json test/upstream/build --out $(CLOCKED) --cache $(CLOCKED)-cache etcd kubernetes
	$(ROOT) ln -sfn $(UPSTREAM)/containerd $(UPSTREAM)/images $(CLOCKED)/
	go test -c -tags root,clock -overlay $(CLOCK)/overlay.json -o bin/root/years.test ./test/native
	head -c 8 /dev/zero >$(CLOCK)/now
	cd test/native && $(ISOLATED) env IMAGECTL_UPSTREAM=$(CLOCKED) NATIVE_OVERLAY=$(CLOCK)/overlay.json IMAGECTL_TEST_CLOCK=$(CLOCK)/now $(CURDIR)/bin/root/years.test -test.timeout 4h -test.run Clock -test.v

# Not what tests need, and no goal hangs on it: cfssl is compared where it can be built.
CFSSL := github.com/cloudflare/cfssl/cmd/cfssl@v1.6.5

.PHONY: bench-join
bench-join: build upstream ## enrolments a second, against a plain signer and cfssl; the stages of twenty joins
	$(call say,1000 simulated agents enrol at once (half a minute; 3 minutes more to build cfssl))
	@test/packages test/benchjoin/bench-packages.txt || true
	@[ -x bin/cfssl ] || (cd / && CGO_ENABLED=1 GOBIN=$(CURDIR)/bin GOFLAGS= go install $(CFSSL)) || echo 'cfssl could not be built: it is not compared'
	go build -o bin/benchjoin ./test/benchjoin
	bin/benchjoin -cfssl "$$(ls bin/cfssl 2>/dev/null || true)"
	$(call say,twenty workers join one after the other (about 4 minutes))
	go test -c -tags root -o bin/root/native.test ./test/native
	cd test/native && $(ISOLATED) $(CURDIR)/bin/root/native.test -test.timeout 60m -test.run Joins -test.v

.PHONY: release-test
release-test: build release ## the test release itself: bad ones refused, firmware, verity, Ignition, doors
	$(call say,the test release in virtual machines (about 4 minutes))
	go test -count=1 -tags vm -parallel 2 -timeout 90m -v -skip '$(MEDIA)' ./test/release -release $(RELEASE) -bin $(CURDIR)/bin

# What starts from other media than a disk, and with the user's own keys only.
MEDIA := ^Test(MediumBootsEveryWay|SecureBootStartsOnlyWhatIsSigned)$$

.PHONY: media-test
media-test: build release ## ISO images and sticks under both firmwares, and Secure Boot with keys of one's own
	$(call say,installation media and Secure Boot in virtual machines (about 2 minutes))
	go test -count=1 -tags vm -parallel 2 -timeout 90m -v -run '$(MEDIA)' ./test/release -release $(RELEASE) -bin $(CURDIR)/bin

.PHONY: formats
formats: build release ## every format boots in a virtual machine until it is enrolled
	$(call say,disk formats and the ISO image in virtual machines (half an hour on a busy host without KVM))
	go test -c -tags e2e -o bin/formats.test ./test/formats
	cd test/formats && $(ISOLATED) $(CURDIR)/bin/formats.test -test.timeout 90m -test.v -bin $(CURDIR)/bin -release $(RELEASE)

# Firmware whose installer gets as far as being told to install: two at a time, which is
# what two cores can do. BIOS and PXE over IPv4 do so in e2e.
ENROLLED := FirmwareOfHTTPSGetsEnrolled FirmwareOfIPv6GetsEnrolled MachineBehindARelayGetsEnrolled MachineBesideAnotherServerGetsEnrolled

.PHONY: netboot-enrolled
netboot-enrolled: build release ## machines that boot by HTTPS, by IPv6, behind a relay and beside another DHCP server get enrolled
	$(call say,installers out of the network in virtual machines (about 5 minutes without KVM))
	go test -c -tags e2e -o bin/root/test-netboot.test ./test/netboot
	@printf 'test/netboot Test%s\n' $(ENROLLED) | xargs -P 2 -L 1 $(ROOT) sh -c 'test/root-test "$$1" "$$2" -bin $(CURDIR)/bin -release $(RELEASE)' sh

.PHONY: netboot-test
netboot-test: netboot-enrolled ## besides: an unknown machine, Secure Boot with the signed installer by HTTP, a server that dies, no IPv4 on the wire; a BMC has the power
	$(call say,more installers out of the network (about 8 minutes without KVM))
	@for t in UnknownMachineIsDiscoveredAndItsDiskStays SecureBootFromTheNetwork InstallerNeedsNoServerToStart KernelStartsByIPv6 IPMIProvisionsAMachine; do \
	    $(ROOT) test/root-test test/netboot Test$$t -bin $(CURDIR)/bin -release $(RELEASE) || exit 1; done

.PHONY: netboot-grub
netboot-grub: build release ## shim and GRUB load the whole installer, which enrols; apart, since TFTP in an emulator is slow
	$(call say,the installer by shim and GRUB in a virtual machine (TFTP of 150 MB: minutes on a quiet host, a quarter of an hour on a busy one))
	go test -c -tags e2e -o bin/netboot.test ./test/netboot
	cd test/netboot && $(ISOLATED) $(CURDIR)/bin/netboot.test -test.timeout 60m -test.v -test.run '^TestGRUBLoadsTheInstaller$$' -bin $(CURDIR)/bin -release $(RELEASE)

.PHONY: tpm-test
tpm-test: build release ## empty machines with a TPM are enrolled without a person; another TPM is refused
	$(call say,machines with TPMs (about 6 minutes without KVM))
	go test -c -tags e2e -o bin/tpm.test ./test/tpm
	cd test/tpm && $(ISOLATED) $(CURDIR)/bin/tpm.test -test.timeout 60m -test.v -bin $(CURDIR)/bin -release $(RELEASE)

.PHONY: diskless-test
diskless-test: build release ## a machine that runs in its memory is enrolled, and joins, at each start; nobody writes its disk
	$(call say,diskless machines (about a quarter of an hour without KVM))
	go test -c -tags e2e -o bin/diskless.test ./test/diskless
	cd test/diskless && $(ISOLATED) $(CURDIR)/bin/diskless.test -test.timeout 90m -test.v -bin $(CURDIR)/bin -release $(RELEASE) -upstream $(UPSTREAM)

.PHONY: e2e
e2e: build release ## the scenario in virtual machines
	$(call say,the scenario in virtual machines (20 to 40 minutes without KVM))
	go test -c -tags e2e -o bin/e2e.test ./test/e2e
	cd test/e2e && $(ISOLATED) $(CURDIR)/bin/e2e.test -test.timeout 90m -test.v -bin $(CURDIR)/bin -release $(RELEASE) -upstream $(UPSTREAM) -work $(E2E_WORK)

# RUNS=3 for a median; one run is most of an hour without KVM. BYHAND is for more flags,
# such as -control-planes 1 -workers 1 -only hand.
BYHAND ?=

.PHONY: by-hand
by-hand: build release ## three control planes and two workers, beside the same typed by hand with kubeadm; wrong clocks
	$(call say,five machines twice: by imagectl and by hand (an hour without KVM))
	go test -c -tags e2e -o bin/byhand.test ./test/byhand
	cd test/byhand && $(ISOLATED) $(CURDIR)/bin/byhand.test -test.timeout 10h -test.v -bin $(CURDIR)/bin -release $(RELEASE) -upstream $(UPSTREAM) -work $(E2E_WORK)-by-hand -runs $(or $(RUNS),1) $(BYHAND)

.PHONY: test-e2e
test-e2e: e2e native-ha native-certs native-encryption native-by-hand drills years native-years by-hand ## all of bootstrap: every drill, and the whole line in virtual machines

.PHONY: bench-images
bench-images: release ## making images, against what people use otherwise
	@test/packages test/bench/guestfish-packages.txt
	$(call say,images against qemu-img and lbzip2 and guestfish and cp (about 10 minutes))
	go build -o bin/bench ./test/bench
	bin/bench -release $(RELEASE) -upstream $(UPSTREAM)

# Programs of other hands that uploads are tried against, beside Debian's.
AZURITE := $(CURDIR)/bin/azurite/node_modules/.bin/azurite-blob

.PHONY: versitygw
versitygw:
	cd / && GOBIN=$(CURDIR)/bin GOFLAGS= go install github.com/versity/versitygw/cmd/versitygw@v1.8.0

.PHONY: upload-programs
upload-programs: versitygw
	@test/packages images/upload/upload-packages.txt images/upload/openstack-packages.txt
	@command -v npm >/dev/null || test/packages images/upload/npm-packages.txt
	cd / && GOBIN=$(CURDIR)/bin GOFLAGS= go install github.com/fsouza/fake-gcs-server@v1.56.1
	npm install --silent --no-audit --no-fund --prefix bin/azurite azurite@3.35.0

.PHONY: upload-servers
upload-servers: build upload-programs ## uploads against servers of other hands, a quarter of the faults: versitygw, sshd, docker-registry, libvirtd, Azurite, fake-gcs-server, Keystone and Glance
	$(call say,uploads against real servers (4 to 6 minutes))
	test/upload-servers -short bin $(AZURITE)

.PHONY: upload-test
upload-test: build upload-programs ## the same with every fault, and vCenter's simulator with every fault
	$(call say,uploads against real servers, every fault (about 20 minutes))
	test/upload-servers bin $(AZURITE)
	go test -count=1 -tags upload -v ./images/upload/vsphere

.PHONY: templates
templates: build release ## clones of a libvirt template boot in virtual machines until they are enrolled
	@test/packages images/upload/upload-packages.txt
	$(call say,clones of a libvirt template in virtual machines (about 4 minutes))
	go test -c -tags e2e -o bin/templates.test ./test/templates
	cd test/templates && $(ISOLATED) $(CURDIR)/bin/templates.test -test.timeout 90m -test.v -bin $(CURDIR)/bin -release $(RELEASE)

.PHONY: vagrant-test
vagrant-test: build release ## vagrant up: the Vagrantfile's machines become the example cluster
	@test/packages test/vagrant/vagrant-packages.txt
	$(call say,the Vagrantfile's machines in virtual machines (about 20 minutes without KVM))
	go test -c -tags e2e -o bin/vagrant.test ./test/vagrant
	cd test/vagrant && $(ISOLATED) sh -c '"$$0" "$$@"; exit $$?' $(CURDIR)/bin/vagrant.test -test.timeout 90m -test.v -bin $(CURDIR)/bin -release $(RELEASE) -upstream $(UPSTREAM) -root $(CURDIR)

.PHONY: storm
storm: build deps ## 1,000 and 10,000 simulated machines boot at once, frames get lost
	$(call say,simulated machines with real firmware time-outs against imagectl serve (about 10 minutes))
	go build -o bin/storm ./test/storm
	$(ISOLATED) bin/storm -imagectl bin/imagectl

.PHONY: storm-short
storm-short: build deps ## 200 simulated machines, no frames lost and five of a hundred
	$(call say,simulated machines against imagectl serve (42 seconds))
	go build -o bin/storm ./test/storm
	$(ISOLATED) bin/storm -imagectl bin/imagectl -machines 200 -loss 0,5 -limit 10m

.PHONY: two-servers
two-servers: build upstream ## two servers on three members of etcd, with a shared registry; one of each is killed while machines boot and install
	@test/packages test/storm/drill-packages.txt
	$(call say,two imagectl serve and three etcd in network namespaces (about 3 minutes))
	go build -o bin/storm ./test/storm
	$(ISOLATED) bin/storm -imagectl bin/imagectl -drill $$(ls -d $(UPSTREAM)/etcd/*/ | tail -1) -machines 48

.PHONY: bench-boot
bench-boot: build ## booting, against Kea and dnsmasq and atftpd and nginx and matchbox
	$(call say,DHCP and TFTP and HTTP against what people use otherwise (about 10 minutes))
	@test/packages test/benchboot/bench-packages.txt || echo 'some of the others could not be installed: they are not compared'
	go build -o bin/benchboot ./test/benchboot
	(cd test/benchboot/matchbox && go build -mod=readonly -trimpath -o $(CURDIR)/bin/matchbox github.com/poseidon/matchbox/cmd/matchbox) || rm -f bin/matchbox
	$(ISOLATED) bin/benchboot -matchbox "$$(ls bin/matchbox 2>/dev/null || true)"

.PHONY: bench-upload
bench-upload: build release ## uploads to every platform, against curl; what the clouds' take of memory
	@test/packages test/benchupload/bench-packages.txt
	$(call say,uploads and what platforms fetch from against curl and nginx (about 9 minutes))
	go test -c -tags bench -o bin/benchupload.test ./test/benchupload
	bin/benchupload.test -test.timeout 60m -release $(RELEASE) -imagectl $(CURDIR)/bin/imagectl

.PHONY: test
test: deps unit test-root netboot-enrolled storm-short native years release-test upload-servers templates e2e ## the main job and all its parts; CI adds media-test

.PHONY: generate
generate: ## rewrite the wire contract's Go code (needs protobuf-compiler, libprotobuf-dev)
	GOBIN=$(CURDIR)/bin go install google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	PATH=$(CURDIR)/bin:$$PATH protoc -I bootstrap/api -I /usr/include \
	    --go_out=bootstrap/api --go_opt=module=github.com/imagectl/imagectl/bootstrap/api \
	    --connect-go_out=bootstrap/api --connect-go_opt=module=github.com/imagectl/imagectl/bootstrap/api \
	    bootstrap/api/imagectl/v1/*.proto

.PHONY: lint
lint: ## golangci-lint, built from its module (the first time takes minutes)
	GOFLAGS=-mod=mod GOBIN=$(CURDIR)/bin go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	bin/golangci-lint run --timeout 30m ./...

.PHONY: clean
clean: ## what make built here; the cache stays
	rm -rf bin out

.PHONY: help
help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
