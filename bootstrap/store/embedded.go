package store

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// dataDir is etcd's, in the state directory.
const dataDir = "etcd"

// quotaBytes bounds the database: a million audit entries. Past it, etcd refuses
// to write rather than to fill the disk.
const quotaBytes = 512 << 20

// mostEmbedded is how many changes one transaction of it may have.
const mostEmbedded = 500

// startEtcd runs etcd in this process, without a socket: a unix socket for peers
// would become an abstract one, which every user of the machine may call (etcd
// 3.7.3 takes its path from the URL's host part).
func startEtcd(ctx context.Context, dir string, c Config) (*embed.Etcd, error) {
	if err := awaitEtcd(ctx, filepath.Join(dir, dataDir)); err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Name = "imagectl"
	cfg.Dir = filepath.Join(dir, dataDir)
	// No listener at all: this process calls the server directly. The URL below is
	// never dialled, a member has to have one.
	nowhere := []url.URL{{Scheme: "unix", Path: filepath.Join(dir, dataDir)}}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = nil, nowhere
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = nil, nowhere
	cfg.InitialCluster = cfg.Name + "=" + nowhere[0].String()

	// One member needs no patience with its peers; this is how fast it elects
	// itself after a start.
	cfg.TickMs, cfg.ElectionMs = 20, 200
	cfg.QuotaBackendBytes = quotaBytes
	cfg.UnsafeNoFsync = c.Volatile
	cfg.AutoCompactionMode, cfg.AutoCompactionRetention = embed.CompactorModeRevision, "1000"
	cfg.SnapshotCount, cfg.SnapshotCatchUpEntries = 2000, 500
	cfg.MaxSnapFiles, cfg.MaxWalFiles = 2, 2
	cfg.EnableGRPCGateway = false
	cfg.MaxTxnOps = 1024 + 1 + maxOld // a whole rack is listed in few transactions
	// Below this level etcd reports its own shutdown as errors; what fails for us
	// comes back from the call that failed.
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(zapcore.NewCore(
		zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(c.Log), zapcore.DPanicLevel)))

	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.Server.ReadyNotify():
		return e, nil
	case err = <-e.Err():
	case <-e.Server.StopNotify():
		err = errors.New("etcd stopped while it was starting")
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(2 * time.Minute):
		err = errors.New("etcd was not ready within two minutes")
	}
	e.Close()
	return nil, err
}
