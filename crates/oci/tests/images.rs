//! Image layouts and archives of Docker's: which image is taken, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::{Layer, Layout, brief, digest, gzip, list, options, read_name, zstd};
use daxfs_oci::{Error, Options};
use serde_json::json;
use std::fs;
use std::path::Path;

fn layers(text: &str) -> Vec<Layer> {
    vec![Layer::new().file("a", text).file("b", "old"), Layer::new().gone("b")]
}

fn oci(path: &Path, end: &str) -> String {
    format!("oci:{}{end}", path.display())
}

fn read(name: &str) -> Result<Vec<String>, Error> {
    read_name(name, &options()).map(|rootfs| brief(&list(&rootfs)))
}

fn on(name: &str, platform: &str) -> Result<Vec<String>, Error> {
    let options = Options { platform: Some(platform.parse().unwrap()), ..options() };
    read_name(name, &options).map(|rootfs| brief(&list(&rootfs)))
}

#[test]
fn tags_and_digests_choose() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path());
    let [one, two] = ["1", "2"].map(|text| layout.image(&layers(text), gzip, "amd64"));
    let second = two["digest"].as_str().unwrap().to_owned();
    layout.tag(one, "v1");
    layout.finish();
    assert_eq!(read(&oci(dir.path(), "")).unwrap(), ["/a=1"]);
    layout.tag(two, "docker.io/a/b:v2");
    layout.finish();
    assert_eq!(read(&oci(dir.path(), ":v1")).unwrap(), ["/a=1"]);
    assert_eq!(read(&oci(dir.path(), ":docker.io/a/b:v2")).unwrap(), ["/a=2"]);
    assert_eq!(read(&oci(dir.path(), &format!("@{second}"))).unwrap(), ["/a=2"]);
    let error = read(&oci(dir.path(), "")).unwrap_err().to_string();
    assert!(
        error.contains("several images have a tag (oci:DIR:TAG); there are \"v1\", \"docker.io/a/b:v2\""),
        "{error}"
    );
    let error = read(&oci(dir.path(), ":v3")).unwrap_err();
    assert!(matches!(&error, Error::NoImage { wanted, .. } if wanted == "\"v3\""), "{error}");
    let none = format!("@sha256:{}", "0".repeat(64));
    assert!(matches!(read(&oci(dir.path(), &none)), Err(Error::NoImage { .. })));
    let rootfs = read_name(&oci(dir.path(), ":v1"), &options()).unwrap();
    let config = String::from_utf8(rootfs.config.unwrap()).unwrap();
    assert!(config.contains(r#""Entrypoint":["/bin/sh"]"#), "{config}");
    assert_eq!(rootfs.manifest.unwrap().algorithm(), "sha256");
}

#[test]
fn platforms_choose() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path());
    let machine = daxfs_oci::Platform::host().architecture;
    let other = "s390x";
    let platform = |architecture: &str, mut manifest: serde_json::Value| {
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifest
    };
    let own = platform(&machine, layout.image(&layers("own"), zstd, &machine));
    let foreign = platform(other, layout.image(&layers("other"), gzip, other));
    // What builders add beside images says that it is for no machine.
    let mut signed = layout.image(&[], gzip, "unknown");
    signed["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let index = json!({"schemaVersion": 2, "manifests": [foreign.clone(), own, signed]});
    let index = layout.blob("application/vnd.oci.image.index.v1+json", index.to_string().as_bytes());
    layout.tag(index, "both");
    layout.tag(foreign, "foreign");
    layout.finish();
    assert_eq!(read(&oci(dir.path(), ":both")).unwrap(), ["/a=own"]);
    assert_eq!(on(&oci(dir.path(), ":both"), "linux/s390x").unwrap(), ["/a=other"]);
    let error = on(&oci(dir.path(), ":both"), "linux/riscv64").unwrap_err();
    assert!(matches!(error, Error::Choice { .. }), "{error}");
    // The only one is taken wherever it runs, unless another was asked for.
    assert_eq!(read(&oci(dir.path(), ":foreign")).unwrap(), ["/a=other"]);
    assert!(matches!(on(&oci(dir.path(), ":foreign"), "linux/amd64"), Err(Error::Choice { .. })));
}

#[test]
fn blobs_are_compared_with_their_digests() {
    let change = |change: &dyn Fn(&Path, &str)| {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(dir.path());
        let manifest = layout.image(&layers("1"), gzip, "amd64");
        let digest = manifest["digest"].as_str().unwrap()[7..].to_owned();
        layout.tag(manifest, "t");
        layout.finish();
        change(dir.path(), &digest);
        read(&oci(dir.path(), "")).unwrap_err()
    };
    let blob = |dir: &Path, digest: &str| dir.join("blobs/sha256").join(digest);
    let flip = |path: &Path, at: usize| {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let part = |dir: &Path, manifest: &str, pointer: &str| {
        let manifest: serde_json::Value =
            serde_json::from_slice(&fs::read(blob(dir, manifest)).unwrap()).unwrap();
        blob(dir, &manifest.pointer(pointer).unwrap().as_str().unwrap()[7..])
    };
    let error = change(&|dir, digest| flip(&blob(dir, digest), 5));
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let error = change(&|dir, digest| flip(&part(dir, digest, "/config/digest"), 5));
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    // The time in the header of gzip says nothing of what comes out.
    let error = change(&|dir, digest| flip(&part(dir, digest, "/layers/0/digest"), 5));
    assert!(matches!(&error, Error::Digest { place, .. } if place.starts_with("layer 1 of 2")), "{error}");
    let error = change(&|dir, digest| {
        let path = part(dir, digest, "/layers/1/digest");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    });
    assert!(matches!(error, Error::Size { .. }), "{error}");
    let error = change(&|dir, digest| fs::remove_file(part(dir, digest, "/layers/1/digest")).unwrap());
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let error = change(&|dir, _| fs::remove_file(dir.join("oci-layout")).unwrap());
    assert!(error.to_string().contains("has no oci-layout: it is no OCI image layout"), "{error}");
    let error =
        change(&|dir, _| fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"2.0.0"}"#).unwrap());
    assert!(error.to_string().contains("version \"2.0.0\""), "{error}");
    let error = change(&|dir, _| fs::write(dir.join("index.json"), "{").unwrap());
    assert!(matches!(error, Error::Json { .. }), "{error}");
    let error = change(&|dir, _| fs::write(dir.join("index.json"), vec![b' '; 5 << 20]).unwrap());
    assert!(matches!(error, Error::Limit { what: "bytes of a document", .. }), "{error}");
}

#[test]
fn layers_are_compared_as_they_come_out() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(dir.path());
    let layer = gzip(&Layer::new().file("a", "1").bytes());
    let descriptor = layout.blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
    let config = |diff_ids: serde_json::Value| {
        json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
            .to_string()
    };
    let image = |config: &str| {
        let config = layout.blob("application/vnd.oci.image.config.v1+json", config.as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [descriptor]}).to_string();
        layout.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes())
    };
    let wrong = image(&config(json!([digest(b"another")])));
    let few = image(&config(json!([])));
    let odd = image(&config(json!(["sha256:../../../etc/passwd"])));
    for (manifest, tag) in [(wrong, "wrong"), (few, "few"), (odd, "odd")] {
        layout.tag(manifest, tag);
    }
    layout.finish();
    let error = read(&oci(dir.path(), ":wrong")).unwrap_err();
    assert!(matches!(&error, Error::Digest { place, .. } if place.ends_with("decompressed")), "{error}");
    let error = read(&oci(dir.path(), ":few")).unwrap_err();
    assert!(error.to_string().contains("names 0 layers, the manifest has 1"), "{error}");
    let error = read(&oci(dir.path(), ":odd")).unwrap_err();
    assert!(error.to_string().contains("neither sha256 nor sha512"), "{error}");
}

/// What `docker save` writes.
fn saved(list: serde_json::Value, config: (&str, &str), layers: &[(&str, &[u8])]) -> Layer {
    let archive = layers.iter().fold(Layer::new(), |archive, (name, bytes)| archive.file(name, bytes));
    archive.file(config.0, config.1).file("manifest.json", list.to_string())
}

#[test]
fn archives_of_docker() {
    let layer = Layer::new().file("a", "1").bytes();
    let packed = gzip(&layer);
    let config = json!({
        "os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [digest(&layer), digest(&layer)]},
    })
    .to_string();
    let name = format!("{}.json", &digest(config.as_bytes())[7..]);
    let layers = ["x/layer.tar", "y/layer.tar"];
    let list = |config: &str| json!([{"Config": config, "RepoTags": ["a/b:1"], "Layers": layers}]);
    // Old versions link to layers that are there already.
    let linked = saved(list(&name), (&name, &config), &[("x/layer.tar", &layer)])
        .symlink("y/layer.tar", "../x/layer.tar");
    let mixed = saved(list(&name), (&name, &config), &[("x/layer.tar", &layer), ("y/layer.tar", &packed)]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image.tar");
    let named = |end: &str| format!("docker-archive:{}{end}", path.display());
    for archive in [linked.bytes(), mixed.bytes(), gzip(&linked.bytes()), zstd(&mixed.bytes())] {
        fs::write(&path, archive).unwrap();
        for end in ["", ":a/b:1"] {
            assert_eq!(read(&named(end)).unwrap(), ["/a=1"]);
        }
        assert!(matches!(read(&named(":a/b:2")), Err(Error::NoImage { .. })));
        assert!(matches!(on(&named(""), "linux/s390x"), Err(Error::Choice { .. })));
    }
    let refused = |archive: Layer| {
        fs::write(&path, archive.bytes()).unwrap();
        read(&named("")).unwrap_err()
    };
    let error = refused(Layer::new().file("a", "1"));
    assert!(error.to_string().contains("has no manifest.json"), "{error}");
    let error = refused(saved(list(&name), (&name, &config), &[("x/layer.tar", &layer)]));
    assert!(error.to_string().contains("has no y/layer.tar"), "{error}");
    let error = refused(saved(list(&name), (&name, &config), &[]).symlink("x/layer.tar", "layer.tar"));
    assert!(error.to_string().contains("has no x/layer.tar"), "{error}");
    let error = refused(saved(list(&name), (&name, &format!("{config} ")), &[("x/layer.tar", &layer)]));
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    let other = Layer::new().file("a", "2").bytes();
    let error =
        refused(saved(list(&name), (&name, &config), &[("x/layer.tar", &layer), ("y/layer.tar", &other)]));
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[test]
fn archives_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let layer = Layer::new().file("a", "1").file(".wh.b", "a name like others");
    let wanted = ["/.wh.b=a name like others", "/a=1"];
    for (name, bytes) in
        [("r.tar", layer.bytes()), ("r.tar.gz", gzip(&layer.bytes())), ("r.tar.zst", zstd(&layer.bytes()))]
    {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        assert_eq!(read(&format!("tar:{}", path.display())).unwrap(), wanted);
        // What can be read once only.
        let pipe = dir.path().join(format!("{name}.pipe"));
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let mut writer = std::process::Command::new("sh");
        let mut writer = writer.args(["-c", "cat \"$0\" >\"$1\""]).arg(&path).arg(&pipe).spawn().unwrap();
        assert_eq!(read(&format!("tar:{}", pipe.display())).unwrap(), wanted);
        assert!(writer.wait().unwrap().success());
    }
    assert!(matches!(read(&format!("tar:{}", dir.path().display())), Err(Error::Layout { .. })));
    assert!(matches!(read("tar:/no/such"), Err(Error::Io { .. })));
}
