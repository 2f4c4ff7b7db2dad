package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/networkservicemesh/sdk/pkg/tools/log"
	"github.com/networkservicemesh/sdk/pkg/tools/log/logruslogger"
	"github.com/sirupsen/logrus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// withLog sets the log up as the Go components do. Below INFO they would lose their call options, and with them descriptors and
// the client's authorisation: INFO is the least.
func withLog(ctx context.Context) (context.Context, error) {
	level, err := logrus.ParseLevel(text("NSM_LOG_LEVEL", "INFO"))
	if err != nil {
		return nil, fmt.Errorf("NSM_LOG_LEVEL: %w", err)
	}
	if level < logrus.InfoLevel {
		return nil, fmt.Errorf("NSM_LOG_LEVEL: %s drops gRPC's call options; use INFO or TRACE", level)
	}
	logrus.SetLevel(level)
	log.EnableTracing(true)
	if on, err := strconv.ParseBool(text("NSM_QUIET", "false")); err == nil && on {
		logrus.SetOutput(io.Discard)
	}
	return log.WithLog(ctx, logruslogger.New(ctx)), nil
}

// text is the value of an environment variable.
func text(name, otherwise string) string {
	if value, ok := os.LookupEnv(name); ok {
		return value
	}
	return otherwise
}

// must ends the program if a setting can't be read: the test that wrote it is wrong.
func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, "setting:", err)
		os.Exit(2)
	}
	return value
}

func duration(name, otherwise string) time.Duration {
	return must(time.ParseDuration(text(name, otherwise)))
}

func number(name, otherwise string) int {
	return must(strconv.Atoi(text(name, otherwise)))
}

func flag(name, otherwise string) bool {
	return must(strconv.ParseBool(text(name, otherwise)))
}

func address(name, otherwise string) *url.URL {
	return must(url.Parse(text(name, otherwise)))
}

// list reads "a,b,c".
func list(name, otherwise string) []string {
	var items []string
	for _, item := range strings.Split(text(name, otherwise), ",") {
		if item = strings.TrimSpace(item); item != "" {
			items = append(items, item)
		}
	}
	return items
}

// labels reads "key:value,key:value".
func labels(name, otherwise string) map[string]string {
	pairs := make(map[string]string)
	for _, item := range list(name, otherwise) {
		key, value, _ := strings.Cut(item, ":")
		pairs[key] = value
	}
	return pairs
}

type fields map[string]any

var output sync.Mutex

// emit tells the test what happened, in one line.
func emit(event string, more fields) {
	line := fields{"event": event}
	for key, value := range more {
		switch value := value.(type) {
		case proto.Message:
			line[key] = shown(value)
		case []proto.Message:
			all := make([]any, len(value))
			for i, each := range value {
				all[i] = shown(each)
			}
			line[key] = all
		default:
			line[key] = value
		}
	}
	bytes := must(json.Marshal(line))
	output.Lock()
	defer output.Unlock()
	_, _ = os.Stdout.Write(append(bytes, '\n'))
}

// shown is a message as JSON without its tokens, which belong into no log.
func shown(message proto.Message) any {
	var value any
	bytes := must(protojson.Marshal(message))
	if err := json.Unmarshal(bytes, &value); err != nil {
		return err.Error()
	}
	forget(value, "token")
	return value
}

// forget removes a key wherever it is.
func forget(value any, key string) {
	switch value := value.(type) {
	case map[string]any:
		delete(value, key)
		for _, each := range value {
			forget(each, key)
		}
	case []any:
		for _, each := range value {
			forget(each, key)
		}
	}
}

// commands calls one for each line of standard input, split at blanks, until ctx is done. Standard input may end before.
func commands(ctx context.Context, one func(verb string, args []string)) {
	lines := make(chan string)
	go func() {
		scanner := bufio.NewScanner(os.Stdin)
		for scanner.Scan() {
			lines <- scanner.Text()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case line := <-lines:
			if words := strings.Fields(line); len(words) > 0 {
				one(words[0], words[1:])
			}
		}
	}
}
