VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
GOBIN := $(shell go env GOPATH)/bin

.PHONY: build test lint fuzz bench cover

build: # static programs without symbols, the same whoever builds them
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -X main.version=$(VERSION)' -o bin/netyard .
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w' -o bin/netyard-cni ./cni/netyard-cni

test: # everything; needs root, and installs what is missing
	scripts/test

lint:
	PATH="$$PATH:$(GOBIN)" golangci-lint run ./...

fuzz: # a minute for each target
	FUZZTIME=60s scripts/fuzz

bench:
	scripts/bench

cover: # of what needs no engine
	go test -coverprofile=cover.out -coverpkg=./... $$(go list ./... | grep -v /integration) && go tool cover -func=cover.out | tail -n 1
