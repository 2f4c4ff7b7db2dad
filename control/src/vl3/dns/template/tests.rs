use proptest::prelude::*;
use vwire_proto::nsm::connection::{Mechanism, Path, PathSegment};

use super::*;

fn connection() -> Connection {
    let segment = |name: &str| PathSegment { name: name.into(), id: "7".into(), ..Default::default() };
    Connection {
        id: "c-1".into(),
        network_service: "vl3-dns@my.cluster3".into(),
        labels: [("podName", "pod-1"), ("x/y", "odd")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        mechanism: Some(Mechanism { cls: "LOCAL".into(), r#type: "MEMIF".into(), ..Default::default() }),
        path: Some(Path { index: 1, path_segments: vec![segment("nsc-1"), segment("nsmgr")] }),
        payload: "IP".into(),
        ..Default::default()
    }
}

fn filled(template: &str) -> String {
    let read: Template = template.parse().unwrap_or_else(|error| panic!("{template}: {error}"));
    read.fill(&connection()).unwrap_or_else(|error| panic!("{template}: {error}"))
}

#[test]
fn the_templates_of_the_go_endpoint_and_its_examples() {
    for (template, name) in [
        (r#"{{ index .Labels "podName" }}.{{ .NetworkService }}."#, "pod-1.vl3-dns@my.cluster3."),
        (
            r#"{{ index .Labels "podName" }}.{{ target .NetworkService }}.{{ domain .NetworkService }}."#,
            "pod-1.vl3-dns.my.cluster3.",
        ),
        (r#"{{ index .Labels "dnsName" }}.{{ .NetworkService }}."#, ".vl3-dns@my.cluster3."),
    ] {
        assert_eq!(filled(template), name, "{template}");
    }
}

#[test]
fn what_else_is_taken_means_what_it_means_in_go() {
    for (template, name) in [
        ("plain", "plain"),
        ("", ""),
        ("{{.Id}}-{{ .Payload }}", "c-1-IP"),
        ("{{ .Labels.podName }}", "pod-1"),
        ("{{ index .Labels `x/y` }}", "odd"),
        ("{{ \"a\\\"b\" }}", "a\"b"),
        ("{{ (index .Path.PathSegments 0).Name }}", "nsc-1"),
        ("{{ .NetworkService | target }}", "vl3-dns"),
        ("{{ (.NetworkService | target) }}{{ 12 }}", "vl3-dns12"),
        ("{{ \"podName\" | index .Labels }}", "pod-1"),
        ("a {{- /* none */ -}} b {{- .Id -}} c", "abc-1c"),
        ("{{/* none */}}x", "x"),
        ("{{ .Mechanism.Type }}.{{ .Mechanism.Parameters.none }}", "MEMIF."),
        ("{{ or (index .Labels \"dnsName\") .Labels.podName }}", "pod-1"),
        ("{{ and .Labels.podName .Id }}", "c-1"),
        (
            "{{ if index .Labels \"dnsName\" }}a{{ else if eq .Payload \"x\" \"IP\" }}b{{ else }}c{{ end }}.",
            "b.",
        ),
        ("{{ if ne .Payload `IP` }}a{{ else }}{{ if not .Id }}b{{ else }}c{{ end }}{{ end }}", "c"),
        ("{{ if .Mechanism }}m{{ end }}{{ if .Path.PathSegments }}p{{ end }}", "mp"),
    ] {
        assert_eq!(filled(template), name, "{template}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_when_it_is_read() {
    for (template, part) in [
        ("{{ .Labels", "}}"),
        ("{{ }}", "missing"),
        ("{{ .NoField }}", "NetworkServiceEndpointName"),
        ("{{ .Id.X }}", "no fields"),
        ("{{ .Labels }}", "a map"),
        ("{{ . }}", "the connection"),
        ("{{ .Id. }}", "missing"),
        ("{{ printf \"%s\" .Id }}", "printf"),
        ("{{ range .Labels }}x{{ end }}", "range"),
        ("{{ index .Labels }}", "index"),
        ("{{ index .Labels podName }}", "podName"),
        ("{{ target }}", "one text"),
        ("{{ target .Labels }}", "one text"),
        ("{{ (.Id }}", ")"),
        ("{{ .Id) }}", "("),
        ("{{ .Id .Id }}", "arguments"),
        ("{{ .Id | .Id }}", "arguments"),
        ("{{ if .Id }}x", "end"),
        ("{{ if .Id }}x{{ else }}y", "end"),
        ("{{ end }}", "end without"),
        ("{{ else }}", "else without"),
        ("{{ if .Id }}{{ else }}{{ else }}{{ end }}", "else behind"),
        ("{{ eq .Id }}", "eq"),
        ("{{ eq .Id 1 }}", "eq"),
        ("{{ not .Id }}", "a truth value"),
        ("{{ \"x }}", "\""),
        ("{{ \"\\x41\" }}", "\\x"),
        ("{{ `x }}", "`"),
        ("{{/* x }}", "*/"),
        ("{{ $x }}", "$"),
        ("{{ 1.5 }}", "whole number"),
        ("{{ 99999999999999999999999 }}", "whole number"),
    ] {
        let error = template.parse::<Template>().expect_err(template);
        assert!(error.contains(part), "{template}: {error}");
    }
    for deep in ["(".repeat(4000), "{{if .Id}}".repeat(400), "{{if .Id}}{{else ".repeat(200)] {
        assert!(format!("{{{{ {deep}").parse::<Template>().is_err());
        assert!(deep.parse::<Template>().is_err() || deep.starts_with('('));
    }
    let chained = format!("{}{}", "{{if .Id}}", "{{else if .Id}}".repeat(200));
    assert!(chained.parse::<Template>().unwrap_err().contains("deep"));
    assert!("x".repeat(MAX_TEMPLATE + 1).parse::<Template>().unwrap_err().contains("4096"));
}

#[test]
fn what_a_connection_does_not_have_is_an_error() {
    let bare = Connection { id: "x".repeat(MAX_TEXT), ..Default::default() };
    for (template, part) in [
        ("{{ .Mechanism.Type }}", "mechanism"),
        ("{{ (index .Path.PathSegments 0).Name }}", "path"),
        ("{{ .Id }}{{ .Id }}", "1024"),
    ] {
        let error = template.parse::<Template>().unwrap().fill(&bare).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
    let far: Template = "{{ (index .Path.PathSegments 9).Name }}".parse().unwrap();
    assert!(far.fill(&connection()).unwrap_err().contains("2 segments"));
}

proptest! {
    #[test]
    fn reading_never_panics(text in "([{]{2}|[}]{2}|-| |\\.|\\(|\\)|if|else|end|index|or|\\.Labels|\"a\"|`|\\||[a-z0-9]|/\\*|\\*/){0,30}") {
        if let Ok(template) = text.parse::<Template>() {
            let _ = template.fill(&connection());
            prop_assert_eq!(template.to_string(), text);
        }
    }
}
