//! Images in a registry of containers, the one that Debian has: artifacts of a layer that is the image.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panicking")]

mod common;

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{image, options};
use daxfs::{Image, Provenance, Region};
use daxfs_remote::{Error, Location, Progress, Remote};
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::manifest::OciImageManifest;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

const RAW: &str = "application/vnd.cncf.model.weight.v1.raw";
const FILE: &str = "org.cncf.model.filepath";

/// A registry with a folder of its own, for as long as this lives.
struct Registry {
    process: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Registry {
    /// `None` where the program is not to be had, which is said.
    fn start() -> Option<Self> {
        let finder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/kernel/registry.py");
        let found = Command::new("python3").arg(finder).output().unwrap();
        if !found.status.success() {
            eprintln!("not run: {}", String::from_utf8_lossy(&found.stderr));
            return None;
        }
        let program = String::from_utf8(found.stdout).unwrap();
        // What pushes for these tests is the library's client, without our code around it. It may be installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        // Another process may take the port before the registry does: then another one is tried.
        (0..5).find_map(|_| Self::try_start(program.trim())).or_else(|| panic!("{program} does not start"))
    }

    fn try_start(program: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = folder.path().join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {:?}}}}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
            folder.path().join("store")
        );
        std::fs::write(&configuration, text).unwrap();
        let mut command = Command::new(program);
        command.arg("serve").arg(&configuration).stdout(Stdio::null()).stderr(Stdio::null());
        let mut registry = Self { process: command.spawn().unwrap(), port, folder };
        let end = Instant::now() + Duration::from_secs(60);
        while Instant::now() < end && registry.process.try_wait().unwrap().is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Some(registry);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }

    fn location(&self, rest: &str) -> Location {
        format!("oci://{}", self.name(rest)).parse().unwrap()
    }

    /// Pushes files as raw layers, as tools of models do; gives the digest of the manifest.
    fn push(&self, rest: &str, files: &[(&str, &[u8])]) -> String {
        let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
        let (client, reference) = (Client::new(config), self.name(rest).parse::<Reference>().unwrap());
        let layers: Vec<_> = files
            .iter()
            .map(|(name, bytes)| {
                let annotations = [(FILE.to_owned(), (*name).to_owned())].into();
                ImageLayer::new(bytes.to_vec(), RAW.to_owned(), Some(annotations))
            })
            .collect();
        let config =
            Config::new(b"{}".to_vec(), "application/vnd.cncf.model.config.v1+json".to_owned(), None);
        let manifest = OciImageManifest::build(&layers, &config, None);
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            client.push(&reference, &layers, config, &RegistryAuth::Anonymous, Some(manifest)).await.unwrap();
            client.fetch_manifest_digest(&reference, &RegistryAuth::Anonymous).await.unwrap()
        })
    }

    /// Changes a byte of a blob on the registry's disk.
    fn spoil(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.folder.path().join("store/docker/registry/v2/blobs/sha256");
        let path = blobs.join(&hex[..2]).join(hex).join("data");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.len().saturating_sub(5000);
        bytes[last] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A layer with one file.
fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, content).unwrap();
    builder.into_inner().unwrap()
}

/// Pushes container images for two machines, and an index of them.
fn push_containers(registry: &Registry, repository: &str) {
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let (client, auth) = (Client::new(config), RegistryAuth::Anonymous);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let tars = [layer("etc/name", b"base"), layer("etc/machine", architecture.as_bytes())];
        let ids: Vec<_> = tars.iter().map(|tar| sha256(tar)).collect();
        let layers = tars.map(|tar| ImageLayer::oci_v1(tar, None)).to_vec();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids},
            "config": {"Cmd": ["/bin/sh"]}
        });
        let config = Config::oci_v1(serde_json::to_vec(&config).unwrap(), None);
        let manifest = OciImageManifest::build(&layers, &config, None);
        let reference: Reference = registry.name(&format!("{repository}:{architecture}")).parse().unwrap();
        let (digest, size) = runtime.block_on(async {
            client.push(&reference, &layers, config, &auth, Some(manifest)).await.unwrap();
            let digest = client.fetch_manifest_digest(&reference, &auth).await.unwrap();
            let types = [oci_client::manifest::OCI_IMAGE_MEDIA_TYPE];
            let (bytes, _) = client.pull_manifest_raw(&reference, &auth, &types).await.unwrap();
            (digest, bytes.len())
        });
        entries.push(serde_json::json!({
            "mediaType": oci_client::manifest::OCI_IMAGE_MEDIA_TYPE, "digest": digest, "size": size,
            "platform": {"architecture": architecture, "os": "linux"}
        }));
    }
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": oci_client::manifest::OCI_IMAGE_INDEX_MEDIA_TYPE, "manifests": entries
    });
    let reference: Reference = registry.name(&format!("{repository}:all")).parse().unwrap();
    runtime
        .block_on(client.push_manifest_list(&reference, &auth, serde_json::from_value(index).unwrap()))
        .unwrap();
}

/// Pushes an image again, whose manifest says another length of its first layer.
fn push_with_size(registry: &Registry, from: &str, to: &str, size: i64) {
    let config = ClientConfig { protocol: ClientProtocol::Http, ..ClientConfig::default() };
    let (client, auth) = (Client::new(config), RegistryAuth::Anonymous);
    let [from, to] = [from, to].map(|name| registry.name(name).parse::<Reference>().unwrap());
    let kind = oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (bytes, _) = client.pull_manifest_raw(&from, &auth, &[kind]).await.unwrap();
        let mut manifest: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        manifest["layers"][0]["size"] = size.into();
        let bytes = serde_json::to_vec(&manifest).unwrap();
        client.push_manifest_raw(&to, bytes, kind.parse().unwrap()).await.unwrap();
    });
}

/// Variables that make this test's own program a packer.
const PACK: [&str; 3] = ["DAXFS_TEST_INPUT", "DAXFS_TEST_OUTPUT", "DAXFS_TEST_PLATFORM"];

/// Not a test: packs what the one below says, with this crate's program to fetch it.
#[test]
fn packer() {
    let [Ok(input), Ok(output)] = [PACK[0], PACK[1]].map(std::env::var) else { return };
    let mut packer = mkimage::Packer::new().input(&input);
    if let Ok(platform) = std::env::var(PACK[2]) {
        packer = packer.platform(Some(platform.parse().unwrap()));
    }
    match packer.plan().and_then(|plan| plan.write_file(&output)) {
        Ok(_) => {}
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(2);
        }
    }
}

fn packed(input: &str, platform: Option<&str>, folder: &Path) -> Result<Image, String> {
    let output = folder.join("packed.daxfs");
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "packer", "--nocapture", "--quiet"]).env("TMPDIR", folder);
    command.env("DAXFS_REMOTE", env!("CARGO_BIN_EXE_daxfs-remote")).env(PACK[0], input).env(PACK[1], &output);
    command.envs(platform.map(|platform| (PACK[2], platform)));
    let done = command.output().unwrap();
    let left: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name == "packed.daxfs"), "{left:?}");
    match done.status.success() {
        true => Ok(Image::open(&output).unwrap()),
        false => Err(String::from_utf8(done.stderr).unwrap()),
    }
}

#[test]
fn container_images_are_packed() {
    let Some(registry) = Registry::start() else { return };
    push_containers(&registry, "library/tool");
    let folder = tempfile::tempdir().unwrap();
    let machine = |image: &Image| image.file("/etc/machine").unwrap().to_vec().unwrap();
    let host = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = format!("oci://{}", registry.name("library/tool:all"));
    let image = packed(&index, None, folder.path()).unwrap();
    assert_eq!(machine(&image), host.as_bytes());
    assert_eq!(image.file("/etc/name").unwrap().to_vec().unwrap(), b"base");
    assert_eq!(machine(&packed(&index, Some("linux/arm64"), folder.path()).unwrap()), b"arm64");
    let one = format!("oci://{}", registry.name("library/tool:amd64"));
    assert_eq!(machine(&packed(&one, None, folder.path()).unwrap()), b"amd64");
    std::fs::remove_file(folder.path().join("packed.daxfs")).unwrap();

    let error = packed(&index, Some("linux/s390x"), folder.path()).unwrap_err();
    assert!(error.contains("linux/s390x"), "{error}");
    let none = format!("oci://{}", registry.name("library/none:v1"));
    let error = packed(&none, None, folder.path()).unwrap_err();
    assert!(error.contains(&format!("{none}: there is no such object")), "{error}");
    // Lengths that are none, that no disk has room for, and that the bytes do not have.
    for (size, why) in
        [(-1, "has a blob of -1 bytes"), (1 << 60, "bytes are free there"), (100, "more than the 100 bytes")]
    {
        push_with_size(&registry, "library/tool:amd64", "library/tool:odd", size);
        let odd = format!("oci://{}", registry.name("library/tool:odd"));
        let error = packed(&odd, None, folder.path()).unwrap_err();
        assert!(error.contains(why), "{size}: {error}");
    }
    // A blob that is another one.
    registry.spoil(&sha256(&layer("etc/name", b"base")));
    let error = packed(&one, None, folder.path()).unwrap_err();
    assert!(error.contains("digest") || error.contains("Digest"), "{error}");
}

fn load(location: &Location) -> Result<Vec<u8>, Error> {
    let bytes_of = |fd: OwnedFd| {
        let region = Region::from_fd(fd).unwrap();
        assert_eq!(region.provenance(), Provenance::Sealed);
        region.as_slice().unwrap().to_vec()
    };
    Remote::open(location, options())?.load().map(|loaded| bytes_of(loaded.fd))
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

#[test]
fn artifacts_of_a_registry() {
    let Some(registry) = Registry::start() else { return };
    let bytes = image();
    let digest = registry.push("models/llama:v1", &[("README.md", b"read me"), ("llama.daxfs", &bytes)]);

    // By its tag, by its digest, and its metadata alone.
    let by_tag = registry.location("models/llama:v1");
    assert!(load(&by_tag).unwrap() == bytes);
    let by_digest = registry.location(&format!("models/llama@{digest}"));
    assert!(load(&by_digest).unwrap() == bytes);
    let metadata = Remote::open(&by_tag, options()).unwrap().metadata().unwrap();
    assert_eq!(metadata.entry_no_follow("/large.bin").unwrap().metadata().size, 20_000_000);

    // What is not there, and what holds no image.
    let error = load(&registry.location("models/llama:v2")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    let error = load(&registry.location("models/none:v1")).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
    registry.push("texts:v1", &[("a.txt", b"a"), ("b.txt", b"b")]);
    let error = load(&registry.location("texts:v1")).unwrap_err().to_string();
    assert!(error.contains("holds no DAXFS image") && error.contains("a.txt, b.txt"), "{error}");
    registry.push("text:v1", &[("a.txt", b"no image")]);
    assert!(matches!(load(&registry.location("text:v1")).unwrap_err(), Error::Image { .. }));

    // A registry that gives other bytes: the image's hashes find them in a file.
    registry.spoil(&sha256(&bytes));
    let error = load(&by_tag).unwrap_err();
    assert!(matches!(&error, Error::WrongBytes { .. }), "{error}");
}

#[test]
fn what_is_pushed_is_loaded_again() {
    let Some(registry) = Registry::start() else { return };
    let bytes = image();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.daxfs");
    std::fs::write(&path, &bytes).unwrap();
    let region = Region::open(&path).unwrap();
    let told = Arc::new(AtomicU64::new(0));
    let here = Arc::clone(&told);
    let mut options = options();
    options.progress = Progress::new(move |done, total| {
        assert!(done <= total, "{done} of {total}");
        here.fetch_max(done, Ordering::Relaxed);
        true
    });
    let digest = daxfs_remote::push(&region, &registry.location("models/llama:v1"), &options).unwrap();
    assert!(load(&registry.location("models/llama:v1")).unwrap() == bytes);
    assert!(load(&registry.location(&format!("models/llama@{digest}"))).unwrap() == bytes);
    // The layer is there now, under another tag too.
    told.store(0, Ordering::Relaxed);
    let again = daxfs_remote::push(&region, &registry.location("models/llama:v2"), &options).unwrap();
    assert_eq!(again, digest);
    assert!(told.load(Ordering::Relaxed) <= bytes.len() as u64, "{told:?}");
    assert!(load(&registry.location("models/llama:v2")).unwrap() == bytes);

    let refused = |address: &str, why: &str| {
        let error = daxfs_remote::push(&region, &address.parse().unwrap(), &options).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused("s3://bucket/a.daxfs", "is no registry");
    refused(&format!("oci://{}@{digest}", registry.name("models/llama")), "named by a tag");
    std::fs::write(&path, "no image").unwrap();
    let region = Region::open(&path).unwrap();
    let error = daxfs_remote::push(&region, &registry.location("text:v1"), &options).unwrap_err();
    assert!(matches!(error, Error::Image { .. }), "{error}");
    assert!(matches!(load(&registry.location("text:v1")).unwrap_err(), Error::NotFound { .. }));
    // Nobody wants it any more.
    std::fs::write(&path, &bytes).unwrap();
    options.progress = Progress::new(|done, total| done < total * 3 / 4);
    let region = Region::open(&path).unwrap();
    let error = daxfs_remote::push(&region, &registry.location("other/llama:v1"), &options).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert!(matches!(load(&registry.location("other/llama:v1")).unwrap_err(), Error::NotFound { .. }));
}

#[test]
fn a_digest_binds_what_the_image_has_no_hashes_of() {
    let Some(registry) = Registry::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("table"), vec![7; 1 << 20]).unwrap();
    let path = folder.path().join("plain.daxfs");
    mkimage::Packer::new().input(&tree).hash(false).plan().unwrap().write_file(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    registry.push("plain:v1", &[("plain.daxfs", &bytes)]);
    let location = registry.location("plain:v1");
    assert!(load(&location).unwrap() == bytes);
    registry.spoil(&sha256(&bytes));
    let error = load(&location).unwrap_err();
    assert!(matches!(&error, Error::WrongDigest { .. }), "{error}");
    assert!(error.to_string().contains(&sha256(&bytes)), "{error}");
}

#[test]
fn a_registry_that_is_not_there() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let location: Location = format!("oci://127.0.0.1:{port}/llama:v1").parse().unwrap();
    let error = load(&location).unwrap_err();
    assert!(matches!(&error, Error::Server { again: true, .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("oci://127.0.0.1:{port}/llama:v1: ")), "{error}");
    let error = load(&"oci://127.0.0.1:1/UPPER:v1".parse().unwrap()).unwrap_err();
    assert!(matches!(&error, Error::Location { .. }), "{error}");
}
