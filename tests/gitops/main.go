// Gitops prints how kstatus (Flux, kpt, Argo CD's sync waves) and Argo CD's health check rate objects, one line for each object.
//
//	gitops -health health.lua < objects.yaml
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

func main() {
	health := flag.String("health", "", "Argo CD's health check, in Lua")
	flag.Parse()
	script, err := os.ReadFile(*health)
	if err == nil {
		err = report(os.Stdin, os.Stdout, string(script))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "gitops:", err)
		os.Exit(1)
	}
}

func report(in io.Reader, out io.Writer, script string) error {
	objects, err := read(in)
	if err != nil {
		return err
	}
	for _, object := range objects {
		line, err := verdicts(object, script)
		if err != nil {
			return fmt.Errorf("%s: %w", object.GetName(), err)
		}
		fmt.Fprintf(out, "%s: %s\n", object.GetName(), line)
	}
	return nil
}

// read reads YAML or JSON documents, and the items of lists.
func read(in io.Reader) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(in, 4096)
	for {
		var raw runtime.RawExtension
		if err := decoder.Decode(&raw); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		if len(raw.Raw) == 0 || string(raw.Raw) == "null" {
			continue
		}
		var object unstructured.Unstructured
		if err := object.UnmarshalJSON(raw.Raw); err != nil {
			return nil, err
		}
		if object.IsList() {
			list, err := object.ToList()
			if err != nil {
				return nil, err
			}
			for i := range list.Items {
				objects = append(objects, &list.Items[i])
			}
		} else {
			objects = append(objects, &object)
		}
	}
}

func verdicts(object *unstructured.Unstructured, script string) (string, error) {
	computed, err := status.Compute(object)
	if err != nil {
		return "", err
	}
	health, err := argo(object, script)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("kstatus %s, health %s", computed.Status, health), nil
}

// argo runs the check as Argo CD does: the object is the global obj, and the script returns a table with status and message. Only the
// libraries that Argo CD opens are available.
func argo(object *unstructured.Unstructured, script string) (string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.LoadLibName: lua.OpenPackage, lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return "", err
		}
	}
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return "", err
	}
	result, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", errors.New("the health check returned no table")
	}
	var rating bytes.Buffer
	rating.WriteString(result.RawGetString("status").String())
	if message, ok := result.RawGetString("message").(lua.LString); ok && message != "" {
		fmt.Fprintf(&rating, " (%s)", message)
	}
	return rating.String(), nil
}

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case map[string]any:
		table := state.NewTable()
		for key, item := range of {
			table.RawSetString(key, value(state, item))
		}
		return table
	case []any:
		table := state.NewTable()
		for _, item := range of {
			table.Append(value(state, item))
		}
		return table
	case string:
		return lua.LString(of)
	case bool:
		return lua.LBool(of)
	case int64:
		return lua.LNumber(of)
	case float64:
		return lua.LNumber(of)
	default:
		return lua.LNil
	}
}
