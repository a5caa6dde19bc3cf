package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/imagectl/imagectl/butane/cluster"
)

// gitignore keeps what is made, and what is secret, out of git.
const gitignore = `/out/
/bin/
# Private keys: cluster.yaml only refers to secrets.
*.key
*.agekey
`

// keysNote explains the directory that git would not keep empty.
const keysNote = `Public keys only: keyrings that flatcar.keyring names, recipients of backups.
Private keys stay with their owners; .gitignore keeps *.key and *.agekey out.
`

func newInit(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:     "init [DIR]",
		Short:   "Write a starter cluster.yaml",
		Long:    "Write a small commented cluster.yaml, its JSON Schema for editors, a .gitignore and a keys\ndirectory.\nNothing that exists is overwritten.",
		Example: "  imagectl init lab && cd lab && imagectl validate",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("init takes one directory, got %d; see %s --help", len(args), cmd.CommandPath())}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			if err := writeStarter(dir); err != nil {
				return err
			}
			step := "edit cluster.yaml, put Flatcar's key into keys/flatcar.asc, then"
			if dir != "." {
				step = "cd " + dir + ", " + step
			}
			_, err := fmt.Fprintf(g.stdio.Out, "wrote %s\nnext: %s: imagectl validate\n", filepath.Join(dir, "cluster.yaml"), step)
			return err
		},
	}
}

// schemaLine tells editors with the YAML language server where the schema is.
const (
	schemaName = "cluster.schema.json"
	schemaLine = "# yaml-language-server: $schema=" + schemaName + "\n"
)

func writeStarter(dir string) error {
	files := []struct{ name, content string }{
		{"cluster.yaml", schemaLine + string(cluster.Minimal)},
		{schemaName, string(cluster.Schema)},
		{".gitignore", gitignore},
		{filepath.Join("keys", "README"), keysNote},
	}
	var taken []string
	for _, f := range files {
		if _, err := os.Lstat(filepath.Join(dir, f.name)); err == nil {
			taken = append(taken, filepath.Join(dir, f.name))
		} else if !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("writing the starter: %w", err)
		}
	}
	if len(taken) > 0 {
		return usageError{fmt.Errorf("%s exists already and nothing was written; name an empty directory: imagectl init DIR", strings.Join(taken, ", "))}
	}
	if err := os.MkdirAll(filepath.Join(dir, "keys"), 0o755); err != nil {
		return fmt.Errorf("writing the starter: %w", err)
	}
	for _, f := range files {
		// O_EXCL: whoever was quicker keeps his file.
		w, err := os.OpenFile(filepath.Join(dir, f.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return fmt.Errorf("writing the starter: %w", err)
		}
		_, err = w.WriteString(f.content)
		if err := errors.Join(err, w.Close()); err != nil {
			return fmt.Errorf("writing the starter: %w", err)
		}
	}
	return nil
}
