use super::*;
use crate::signature::{PublicKeys, Scheme, canonical, layout_beside, read, read_beside};
use std::os::unix::fs::symlink;
use std::path::Path;

const KEY: &str = include_str!("../../../tests/cosign/key.pub");
const P384: &str = include_str!("../../../tests/cosign/p384.pub");
const SECRET: &str = include_str!("../../../tests/cosign/key.pem");
const MINISIGN_KEY: &str = include_str!("../../../tests/minisign/minisign.pub");
const MINISIGN: &str = include_str!("../../../tests/minisign/statement.minisig");

/// By openssl, of a payload as `cosign sign -a daxfs-content=...` signs it for a registry's artifact, of a hash of
/// zeros.
const CLAIM_LINE: &str = include_str!("../../../tests/cosign/claim.json");

fn keys() -> PublicKeys {
    PublicKeys::parse(KEY, "key").unwrap()
}

fn sign(payload: &[u8]) -> Vec<u8> {
    use p256::ecdsa::signature::Signer;
    use p256::pkcs8::DecodePrivateKey;
    let key = p256::ecdsa::SigningKey::from_pkcs8_pem(SECRET).unwrap();
    let signature: DerSignature = key.sign(payload);
    signature.as_bytes().to_vec()
}

fn signed(payload: &str) -> String {
    line(payload.as_bytes(), &sign(payload.as_bytes()))
}

fn write(path: &Path, files: &[(std::path::PathBuf, Vec<u8>)]) {
    std::fs::create_dir_all(path.join("blobs/sha256")).unwrap();
    for (name, bytes) in files {
        std::fs::write(path.join(name), bytes).unwrap();
    }
}

#[test]
fn a_claim_binds_the_content_whatever_artifact_is_signed() {
    let valid = keys().verify(&[0; 32].into(), CLAIM_LINE).unwrap();
    assert_eq!(valid.scheme, Scheme::Cosign);
    assert!(
        valid.comment.starts_with("reference:registry.example/llama\tdaxfs content blake3:0000"),
        "{valid:?}"
    );
    let replayed = keys().verify(&[1; 32].into(), CLAIM_LINE).unwrap_err();
    assert!(
        matches!(&replayed, SignatureError::Invalid { content, .. } if *content == [1; 32].into()),
        "{replayed}"
    );
    let payload = String::from_utf8(payload(&[7; 32].into(), "m", 9)).unwrap();
    keys().verify(&[7; 32].into(), &signed(&payload)).unwrap();
    // The claim counts, and not what else the payload has.
    let other = payload.replace(&"07".repeat(32), &"08".repeat(32));
    keys().verify(&[7; 32].into(), &signed(&other)).unwrap_err();
}

#[test]
fn without_a_claim_the_manifest_binds_the_content() {
    let right = digest(manifest(&[7; 32].into()).as_bytes());
    let payload = |digest: &str| {
        format!(
            "{{\"critical\":{{\"identity\":{{\"docker-reference\":\"\"}},\"image\":{{\"docker-manifest-digest\":\
             \"{digest}\"}},\"type\":\"cosign container image signature\"}},\"optional\":null}}"
        )
    };
    let valid = keys().verify(&[7; 32].into(), &signed(&payload(&right))).unwrap();
    assert!(valid.comment.ends_with(&right), "{valid:?}");
    let other = keys().verify(&[8; 32].into(), &signed(&payload(&right))).unwrap_err();
    assert!(matches!(other, SignatureError::Invalid { .. }), "{other}");
    // Who has the manifest of a content once has it for ever.
    let golden = "sha256:8ff37e98dd7046cddcda1ff8d6528fbe7d83b7795b73dc42d82dc2d1ed77832f";
    assert_eq!(right, golden, "{}", manifest(&[7; 32].into()));
}

#[test]
fn what_is_changed_or_of_others_is_refused() {
    let other_type =
        String::from_utf8(payload(&[7; 32].into(), "m", 9)).unwrap().replace("container image", "other");
    let text = signed(&other_type);
    assert!(
        keys().verify(&[7; 32].into(), &text).unwrap_err().to_string().contains("the type of its payload")
    );
    let right = signed(&String::from_utf8(payload(&[7; 32].into(), "m", 9)).unwrap());
    let other_sign = line(&payload(&[7; 32].into(), "m", 9), &sign(b"another"));
    let changed = keys().verify(&[7; 32].into(), &other_sign).unwrap_err();
    assert!(matches!(changed, SignatureError::OtherKey { keys: 1 }), "{changed}");
    for end in 1..right.trim_end().len() {
        let error = keys().verify(&[7; 32].into(), &right[..end]).unwrap_err();
        assert!(matches!(error, SignatureError::NotASignature { .. }), "{end}: {error}");
    }
    // Each letter counts, of the payload and of the signature.
    let bytes = right.trim_end().as_bytes();
    for at in 0..bytes.len() {
        let mut changed = bytes.to_vec();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        if let Ok(valid) = keys().verify(&[7; 32].into(), &changed) {
            panic!("{at}: {changed} {valid:?}");
        }
    }
    let minisign = PublicKeys::parse(MINISIGN_KEY, "key").unwrap();
    let scheme = minisign.verify(&[7; 32].into(), &right).unwrap_err();
    assert!(matches!(scheme, SignatureError::OtherScheme { .. }), "{scheme}");
    assert!(keys().verify(&[0; 32].into(), MINISIGN).unwrap_err().to_string().contains("one of minisign"));
}

#[test]
fn one_text_has_signatures_of_both_kinds() {
    let text = MINISIGN.to_owned() + CLAIM_LINE;
    let both = PublicKeys::parse(&[MINISIGN_KEY, "\n", KEY].concat(), "keys").unwrap();
    assert!(both.count() == 2 && both.has(Scheme::Cosign) && both.has(Scheme::Minisign));
    assert_eq!(both.verify(&[0; 32].into(), &text).unwrap().scheme, Scheme::Minisign);
    assert_eq!(keys().verify(&[0; 32].into(), &text).unwrap().scheme, Scheme::Cosign);
    let replayed = both.verify(&[1; 32].into(), &text).unwrap_err();
    assert!(matches!(replayed, SignatureError::Invalid { .. }), "{replayed}");
    let passed = canonical(&text).unwrap();
    assert!(passed.lines().count() == 5 && canonical(&passed).unwrap() == passed, "{passed}");
    keys().verify(&[0; 32].into(), &passed).unwrap();
    // What nobody signed is not passed on.
    let noted =
        CLAIM_LINE.replace("\"annotations\":{", "\"urls\":[\"secret\"],\"annotations\":{\"a\":\"secret\",");
    let passed = canonical(&noted).unwrap();
    assert!(noted.contains("secret") && !passed.contains("secret"), "{passed}");
    let long = CLAIM_LINE.repeat(6);
    assert!(matches!(canonical(&long), Err(SignatureError::TooLong { .. })));
}

#[test]
fn what_is_no_signature_takes_nothing_from_another_one() {
    let minisign = PublicKeys::parse(MINISIGN_KEY, "key").unwrap();
    for bad in ["{}\n", "{\n", &CLAIM_LINE.replace("simplesigning", "other")] {
        let text = MINISIGN.to_owned() + bad;
        minisign.verify(&[0; 32].into(), &text).unwrap();
        assert_eq!(canonical(&text).unwrap(), canonical(MINISIGN).unwrap());
        keys().verify(&[0; 32].into(), &[bad, CLAIM_LINE, "no line of minisign's\n"].concat()).unwrap();
        let error = minisign.verify(&[1; 32].into(), &text).unwrap_err();
        let SignatureError::Several { errors } = &error else { panic!("{error}") };
        assert!(
            matches!(&errors[..], [SignatureError::Invalid { .. }, SignatureError::NotASignature { .. }]),
            "{error}"
        );
    }

    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("m.daxfs");
    let (file, path) = (crate::signature::beside(&image), layout_beside(&image));
    std::fs::write(&file, MINISIGN).unwrap();
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("index.json"), "").unwrap();
    let found = || read_beside(&image).unwrap().unwrap();
    found().verify(&minisign, &[0; 32].into()).unwrap();
    let (passed, refused) = found().canonical();
    assert_eq!(passed, canonical(MINISIGN).unwrap());
    assert!(matches!(&refused[..], [SignatureError::NotALayout { .. }]), "{refused:?}");
    let error = found().verify(&keys(), &[0; 32].into()).unwrap_err().to_string();
    assert!(error.contains("one of minisign") && error.contains("it is not an index"), "{error}");

    let payload = payload(&[7; 32].into(), "m", 9);
    write(&path, &layout(&[7; 32].into(), &payload, &sign(&payload)));
    std::fs::write(&file, "no signature").unwrap();
    found().verify(&keys(), &[7; 32].into()).unwrap();
    std::fs::remove_dir_all(path.join("blobs")).unwrap();
    let error = found().verify(&keys(), &[7; 32].into()).unwrap_err();
    assert!(matches!(&error, SignatureError::Several { errors } if errors.len() == 2), "{error}");
    let (passed, refused) = found().canonical();
    assert!(passed.is_empty() && refused.len() == 2, "{passed} {refused:?}");
    std::fs::write(&file, [0xff]).unwrap();
    let error = read_beside(&image).unwrap_err();
    assert!(matches!(&error, SignatureError::Several { errors } if errors.len() == 2), "{error}");
}

#[test]
fn keys_say_what_they_are() {
    for (text, what) in [
        (P384, "line 1 is no public key"),
        (SECRET, "\"PRIVATE KEY\", which is no public key"),
        ("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "\"ENCRYPTED SIGSTORE PRIVATE KEY\""),
        ("# cut\n-----BEGIN PUBLIC KEY-----\nMFkw\n", "line 2 is no public key"),
        ("-----BEGIN PUBLIC KEY-----\nMFkw\n-----END PUBLIC KEY-----\n", "line 1 is no public key"),
    ] {
        let error = PublicKeys::parse(text, "key").unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    let digest = |message: &[u8]| Sha256::digest(message).into();
    assert!(keys().has_signed(&digest(b"message"), &sign(b"message")));
    assert!(!keys().has_signed(&digest(b"other"), &sign(b"message")));
    assert!(!keys().has_signed(&digest(b"message"), b""));
}

#[test]
fn layouts_are_read_whole_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("m.daxfs");
    let path = layout_beside(&image);
    assert!(path.ends_with("m.daxfs.cosign") && read_beside(&image).unwrap().is_none());
    let payload = payload(&[7; 32].into(), "m", 9);
    let files = layout(&[7; 32].into(), &payload, &sign(&payload));
    write(&path, &files);
    let mut blobs =
        replaceable_blobs(&path, &|name| dmabuf::open_read_only(&path.join(name))).unwrap().unwrap();
    blobs.sort();
    let mut own: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    own.retain(|name| name.starts_with("blobs"));
    own.sort();
    assert_eq!(blobs, own);
    let is_part = |name: &str, bytes: &[u8]| is_part(Path::new(name), bytes);
    assert!(
        files
            .iter()
            .all(|(name, bytes)| name.ends_with("index.json") || is_part(name.to_str().unwrap(), bytes))
    );
    assert!(
        !is_part("oci-layout", b"{") && !is_part("index.json", b"{}") && !is_part("blobs/sha256/a", b"a")
    );
    let found = || read_beside(&image).unwrap().unwrap();
    let (text, refused) = found().canonical();
    assert!(refused.is_empty(), "{refused:?}");
    assert_eq!(text, line(&payload, &sign(&payload)));
    assert_eq!(read(&path).unwrap(), text);
    keys().verify(&[7; 32].into(), &text).unwrap();
    std::fs::write(crate::signature::beside(&image), MINISIGN.trim_end()).unwrap();
    let (both, refused) = found().canonical();
    assert!(both == canonical(MINISIGN).unwrap() + &text && refused.is_empty(), "{both} {refused:?}");
    std::fs::remove_file(crate::signature::beside(&image)).unwrap();

    // Every byte that is read is one that a descriptor names.
    for (name, bytes) in files.iter().filter(|(name, _)| name.starts_with("blobs")) {
        let mut other = bytes.clone();
        other[0] ^= 1;
        std::fs::write(path.join(name), &other).unwrap();
        let is_read = bytes == &payload || bytes.starts_with(b"{\"schemaVersion\"");
        assert_eq!(read(&path).is_err(), is_read, "{name:?}");
        std::fs::write(path.join(name), bytes).unwrap();
    }
    let index = path.join("index.json");
    let right = std::fs::read_to_string(&index).unwrap();
    for (wrong, what) in [
        (right.replace("sha256:", "sha256:../../"), "is no SHA-256"),
        (right.replace("sha256:", "sha512:"), "is no SHA-256"),
        (r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), "no manifest in it has a layer"),
        ("{}".to_owned(), "it is not an index"),
        ("x".repeat(70 << 10), "more than 65536 bytes"),
    ] {
        std::fs::write(&index, wrong).unwrap();
        let error = read_beside(&image).unwrap_err().to_string();
        assert!(error.contains(what), "{what}: {error}");
    }
    let first = &right[right.find("{\"mediaType\":\"application/vnd.oci.image.manifest").unwrap()..];
    let first = &first[..first.find("},{").unwrap() + 1];
    let many = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, vec![first; 65].join(","));
    std::fs::write(&index, many).unwrap();
    assert!(read(&path).unwrap_err().to_string().contains("more than 64"));
    std::fs::write(&index, &right).unwrap();

    // A link is followed where it is named, and not where it was found.
    std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
    symlink("elsewhere", &path).unwrap();
    assert!(read_beside(&image).unwrap().is_none());
    assert_eq!(read(&path).unwrap(), text);
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(dir.path().join("elsewhere"), &path).unwrap();
    for inner in ["blobs", "blobs/sha256"] {
        std::fs::rename(path.join(inner), dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), path.join(inner)).unwrap();
        assert!(matches!(read_beside(&image), Err(SignatureError::Read { .. })), "{inner}");
        assert_eq!(read(&path).unwrap(), text);
        std::fs::remove_file(path.join(inner)).unwrap();
        std::fs::rename(dir.path().join("elsewhere"), path.join(inner)).unwrap();
    }
    std::fs::rename(&index, dir.path().join("index")).unwrap();
    symlink("../index", &index).unwrap();
    assert!(matches!(read_beside(&image), Err(SignatureError::Read { .. })));
    std::fs::remove_file(&index).unwrap();
    assert!(matches!(read(&path), Err(SignatureError::NotAFile { .. })));
}
