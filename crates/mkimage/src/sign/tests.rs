use super::*;
use daxfs::signature::PublicKeys;

/// Of minisign 0.11, without a password.
fn stock() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/minisign/minisign.key")
}

#[test]
fn keys_of_the_stock_tool_sign() {
    let signer = Signer::open(&stock(), None).unwrap();
    let text = signer.sign(&[7; 32].into(), Path::new("a/model\n.daxfs")).unwrap();
    let keys = PublicKeys::read(&stock().with_extension("pub")).unwrap();
    let comment = keys.verify(&[7; 32].into(), &text).unwrap().comment;
    assert!(comment.contains("\tfile:model\\n.daxfs\tdaxfs content blake3:0707"), "{comment}");
    assert_eq!(format!("{signer:?}"), "Signer { .. }");
    let dir = tempfile::tempdir().unwrap();
    let path = signer.write(&[7; 32].into(), &dir.path().join("m.daxfs"), false).unwrap();
    assert!(path.ends_with("m.daxfs.minisig"));
    keys.verify(&[7; 32].into(), &std::fs::read_to_string(path).unwrap()).unwrap();
}

#[test]
fn passwords() {
    let dir = tempfile::tempdir().unwrap();
    let (key, password) = (dir.path().join("key"), dir.path().join("password"));
    let pair = minisign::KeyPair::generate_encrypted_keypair(Some("right".to_owned())).unwrap();
    std::fs::write(&key, pair.sk.to_box(None).unwrap().into_string()).unwrap();
    std::fs::write(&password, "right\n").unwrap();
    let signer = Signer::open(&key, Some(&password)).unwrap();
    let keys = PublicKeys::parse(&pair.pk.to_base64(), "key").unwrap();
    keys.verify(&[1; 32].into(), &signer.sign(&[1; 32].into(), Path::new("m")).unwrap()).unwrap();
    std::fs::write(&password, "wrong\n").unwrap();
    let error = Signer::open(&key, Some(&password)).unwrap_err();
    assert!(matches!(error, Error::Key { .. }) && error.to_string().contains("password"), "{error}");
    let error = Signer::open(&stock(), Some(&password)).unwrap_err();
    assert!(error.to_string().contains("is not protected"), "{error}");
}

/// Of openssl.
fn on_p256(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../daxfs/tests/cosign").join(name)
}

#[test]
fn keys_on_p256_sign_into_a_layout() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("m.daxfs");
    let keys = PublicKeys::read(&on_p256("key.pub")).unwrap();
    let parameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n";
    let sec1 = std::fs::read_to_string(on_p256("sec1.pem")).unwrap();
    let both = dir.path().join("both.pem");
    std::fs::write(&both, [parameters, &sec1].concat()).unwrap();
    for (number, key) in [on_p256("key.pem"), on_p256("sec1.pem"), both].iter().enumerate() {
        let content = [u8::try_from(number).unwrap(); 32];
        let signer = Signer::open(key, None).unwrap();
        assert_eq!(signer.scheme(), Scheme::Cosign);
        let path = signer.write(&content.into(), &image, number == 0).unwrap();
        assert!(path.ends_with("m.daxfs.cosign"));
        let text = daxfs::signature::read(&path).unwrap();
        let valid = keys.verify(&content.into(), &text).unwrap();
        assert!(valid.comment.starts_with("reference:m.daxfs\tcreator:daxfs-pack\ttimestamp:"), "{valid:?}");
        // Nothing of the older signature is left.
        assert_eq!(std::fs::read_dir(path.join("blobs/sha256")).unwrap().count(), 6);
    }
}

/// What lies in the signature's place and is none stays, and what a kill has left of one does not hold it up.
#[test]
fn a_layout_takes_the_place_of_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("m.daxfs");
    let signer = Signer::open(&on_p256("key.pem"), None).unwrap();
    let path = signer.place(&image).unwrap();
    let index = path.join("index.json");
    let blobs = path.join("blobs/sha256");
    signer.write(&[1; 32].into(), &image, false).unwrap();
    // A kill before the index comes leaves the files before it.
    std::fs::remove_file(&index).unwrap();
    signer.write(&[2; 32].into(), &image, false).unwrap();
    let others = std::fs::read_dir(&blobs).unwrap().count();
    // Those that the index leads to go with it, and no other one.
    std::fs::write(blobs.join("notes"), "").unwrap();
    signer.write(&[3; 32].into(), &image, false).unwrap();
    assert_eq!(std::fs::read_dir(&blobs).unwrap().count(), others + 1);
    std::fs::rename(&index, dir.path().join("index")).unwrap();
    assert!(matches!(signer.place(&image), Err(Error::Output { .. })), "notes");
    std::fs::remove_file(blobs.join("notes")).unwrap();
    let part = path.join("oci-layout");
    let version = std::fs::read(&part).unwrap();
    std::fs::write(&part, "other").unwrap();
    assert!(matches!(signer.place(&image), Err(Error::Output { .. })), "another file");
    std::fs::write(&part, version).unwrap();
    signer.place(&image).unwrap();
    std::fs::rename(dir.path().join("index"), &index).unwrap();
    let own = std::fs::read_to_string(&index).unwrap();
    // As a registry's image with its signatures is saved.
    std::fs::write(&index, own.replace("application/vnd.daxfs.content.v1", "application/other")).unwrap();
    let error = signer.write(&[1; 32].into(), &image, false).unwrap_err();
    assert!(matches!(error, Error::Output { .. }), "{error}");
    std::fs::remove_file(&index).unwrap();
    std::fs::write(path.join("notes"), "").unwrap();
    assert!(matches!(signer.place(&image), Err(Error::Output { .. })));
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::write(&path, "a file").unwrap();
    assert!(matches!(signer.place(&image), Err(Error::Output { .. })));
    let minisign = Signer::open(&stock(), None).unwrap();
    std::fs::create_dir(minisign.place(&image).unwrap()).unwrap();
    assert!(matches!(minisign.place(&image), Err(Error::Output { .. })));
}

/// With an index and without one.
#[test]
fn a_layout_is_written_through_no_link() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("m.daxfs");
    let signer = Signer::open(&on_p256("key.pem"), None).unwrap();
    let path = signer.write(&[1; 32].into(), &image, false).unwrap();
    for is_begun in [false, true] {
        for inner in ["", "blobs", "blobs/sha256"] {
            let (place, victim) = (dir.path().join("m.daxfs.cosign").join(inner), dir.path().join("victim"));
            let place = place.components().as_path();
            std::fs::rename(place, &victim).unwrap();
            std::os::unix::fs::symlink(&victim, place).unwrap();
            std::fs::write(victim.join("precious"), "").unwrap();
            let before = std::fs::read_dir(&victim).unwrap().count();
            for refused in [signer.place(&image), signer.write(&[2; 32].into(), &image, false)] {
                assert!(matches!(refused, Err(Error::Output { .. })), "{inner}: {refused:?}");
            }
            assert_eq!(std::fs::read_dir(&victim).unwrap().count(), before, "{inner}");
            std::fs::remove_file(victim.join("precious")).unwrap();
            std::fs::remove_file(place).unwrap();
            std::fs::rename(&victim, place).unwrap();
        }
        signer.place(&image).unwrap();
        if !is_begun {
            std::fs::remove_file(path.join("index.json")).unwrap();
        }
    }
}

/// A folder that this signature did not make stays as it is.
#[test]
fn a_new_layout_that_cannot_be_written_is_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.daxfs.cosign");
    let files = |name: &str| vec![("oci-layout".into(), b"{}".to_vec()), (name.into(), Vec::new())];
    layout::write(&path, &files(&"n".repeat(300)), false).unwrap_err();
    assert!(!path.exists());
    std::fs::create_dir(&path).unwrap();
    layout::write(&path, &files(&"n".repeat(300)), false).unwrap_err();
    assert!(path.exists());
}

#[test]
fn keys_in_pem_say_why_they_do_not_sign() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let right = std::fs::read_to_string(on_p256("key.pem")).unwrap();
    let public = std::fs::read_to_string(on_p256("key.pub")).unwrap();
    let block = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    for (text, why) in [
        (block("ENCRYPTED SIGSTORE PRIVATE KEY"), "`cosign import-key-pair --key KEY`"),
        (block("ENCRYPTED COSIGN PRIVATE KEY"), "is a key of cosign"),
        (block("ENCRYPTED PRIVATE KEY"), "`openssl pkey -in KEY -out PLAIN`"),
        (block("EC PRIVATE KEY").replace("AAAA", "Proc-Type: 4,ENCRYPTED"), "protected by a password"),
        (block("EC PARAMETERS"), "has no secret key in it"),
        (block("RSA PRIVATE KEY"), "\"RSA PRIVATE KEY\""),
        (block("PRIVATE KEY"), "is no key on P-256"),
        (public, "is a public key"),
        (right[..right.len() - 20].to_owned(), "is cut"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = Signer::open(&path, None).unwrap_err();
        assert!(matches!(error, Error::Key { .. }) && error.to_string().contains(why), "{why}: {error}");
    }
    let error = Signer::open(&on_p256("key.pem"), Some(&path)).unwrap_err();
    assert!(error.to_string().contains("leave --password-file out"), "{error}");
}

#[test]
fn what_is_no_key_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let right = std::fs::read_to_string(stock()).unwrap();
    for end in (0..right.trim_end().len()).step_by(7) {
        std::fs::write(&path, &right[..end]).unwrap();
        let error = Signer::open(&path, None).unwrap_err();
        assert!(matches!(error, Error::Key { .. }), "{end}: {error}");
    }
    std::fs::write(&path, "x".repeat(5000)).unwrap();
    assert!(Signer::open(&path, None).unwrap_err().to_string().contains("more than 4096"));
    assert!(matches!(Signer::open(Path::new("/dev/zero"), None), Err(Error::Key { .. } | Error::Io { .. })));
    assert!(matches!(Signer::open(&dir.path().join("none"), None), Err(Error::Io { .. })));
    // The public half is another key's.
    let mut bytes = Base64::decode_to_vec(right.lines().nth(1).unwrap(), None).unwrap();
    bytes[100] ^= 1;
    use ct_codecs::Encoder;
    let text = format!("comment\n{}\n", Base64::encode_to_string(&bytes).unwrap());
    std::fs::write(&path, text).unwrap();
    let error = Signer::open(&path, None).unwrap().sign(&[0; 32].into(), Path::new("m")).unwrap_err();
    assert!(matches!(error, Error::Sign { .. }), "{error}");
}
