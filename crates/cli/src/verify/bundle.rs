//! A signature of OpenSSF model signing: a sigstore bundle, in it an envelope (DSSE), in it an in-toto statement with the
//! digests of a tree's files.

use base64ct::{Base64, Encoding};
use daxfs_protocol::Hex;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Beginning of the media types of bundles.
const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle";
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
const PREDICATE_TYPE: &str = "https://model_signing/signature/v1.0";
/// Before 1.0 the files were the subjects of the statement.
const OLD_PREDICATE_TYPE: &str = "https://model_signing/Digests/v0.1";

/// Most signatures of one statement: each is compared with every key, and tools write one.
const MOST_SIGNATURES: usize = 16;

/// What is left out of a tree whose signature does not say what is.
const GIT: [&str; 4] = [".git", ".gitattributes", ".github", ".gitignore"];

/// A hash function that is known here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    Sha256,
    Blake2b,
    Blake3,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "SHA-256",
            Self::Blake2b => "BLAKE2b",
            Self::Blake3 => "BLAKE3",
        }
    }

    fn of(name: &str) -> Option<Self> {
        match name {
            "sha256" => Some(Self::Sha256),
            "blake2b" => Some(Self::Blake2b),
            "blake3" => Some(Self::Blake3),
            _ => None,
        }
    }

    fn len(self) -> usize {
        if self == Self::Blake2b { 64 } else { 32 }
    }
}

/// A file and what it must be.
#[derive(Debug)]
pub struct Resource {
    /// Relative to the directory of the signature.
    pub name: String,
    pub algorithm: Algorithm,
    pub digest: Vec<u8>,
}

/// What was signed of a tree, and the signatures, which were not checked yet.
#[derive(Debug)]
pub struct Signed {
    pub resources: Vec<Resource>,
    /// Files and directories that were left out, relative as well.
    pub ignored: Vec<String>,
    /// SHA-256 of the bytes that were signed.
    digest: [u8; 32],
    /// In DER.
    signatures: Vec<Vec<u8>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    dsse_envelope: Envelope,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Predicate {
    serialization: Option<Serialization>,
    #[serde(default)]
    resources: Vec<Listed>,
}

#[derive(Deserialize)]
struct Serialization {
    method: String,
    ignore_paths: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct Listed {
    name: String,
    algorithm: String,
    digest: String,
}

impl Signed {
    /// Reads a bundle.
    ///
    /// # Errors
    /// What is wrong with it, or not known here.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let bundle: Bundle = serde_json::from_slice(text)
            .map_err(|error| format!("is not a sigstore bundle with an envelope: {error}"))?;
        if !bundle.media_type.starts_with(BUNDLE_TYPE) {
            return Err(format!(
                "has the media type {:?}, which is not that of a sigstore bundle",
                bundle.media_type
            ));
        }
        let envelope = bundle.dsse_envelope;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(format!("holds {:?}, and no in-toto statement", envelope.payload_type));
        }
        if envelope.signatures.len() > MOST_SIGNATURES {
            let count = envelope.signatures.len();
            return Err(format!("has {count} signatures, more than {MOST_SIGNATURES}"));
        }
        let payload = decode(&envelope.payload).ok_or("has a payload that is no base64")?;
        let statement: Statement = serde_json::from_slice(&payload)
            .map_err(|error| format!("has a payload that is not an in-toto statement of a model: {error}"))?;
        if statement.kind != STATEMENT_TYPE {
            return Err(format!(
                "holds a statement of the type {:?}, which is not known here",
                statement.kind
            ));
        }
        let (resources, ignored) = match statement.predicate_type.as_str() {
            PREDICATE_TYPE => current(statement)?,
            OLD_PREDICATE_TYPE => (old(statement)?, GIT.map(str::to_owned).to_vec()),
            other => return Err(format!("says {other:?} of its subject, which is not known here")),
        };
        let signatures = envelope.signatures.iter().filter_map(|signature| decode(&signature.sig)).collect();
        let digest = Sha256::digest(to_be_signed(&payload)).into();
        Ok(Self { resources, ignored, digest, signatures })
    }

    /// Whether one of the keys has signed it.
    pub fn is_by(&self, keys: &daxfs::signature::PublicKeys) -> bool {
        self.signatures.iter().any(|signature| keys.has_signed(&self.digest, signature))
    }
}

fn current(statement: Statement) -> Result<(Vec<Resource>, Vec<String>), String> {
    let serialization =
        statement.predicate.serialization.ok_or("does not say how the tree was serialized")?;
    if serialization.method != "files" {
        return Err(format!("was made by the method {:?}; \"files\" is known here", serialization.method));
    }
    let listed = statement.predicate.resources.into_iter();
    let resources: Vec<Resource> = listed
        .map(|listed| resource(listed.name, &listed.algorithm, &listed.digest))
        .collect::<Result<_, _>>()?;
    // The subject is the tree, by the digest of all digests.
    let mut hasher = Sha256::new();
    resources.iter().for_each(|resource| hasher.update(&resource.digest));
    let root = hasher.finalize();
    let [subject] = statement.subject.as_slice() else {
        return Err(format!("has {} subjects, and one tree", statement.subject.len()));
    };
    let said = subject.digest.get("sha256").and_then(|digits| Hex::decode(digits));
    if said.as_deref() != Some(root.as_slice()) {
        return Err("contradicts itself: the digest of its subject is not that of its resources".to_owned());
    }
    let ignored = serialization.ignore_paths;
    Ok((resources, ignored.unwrap_or_else(|| GIT.map(str::to_owned).to_vec())))
}

fn old(statement: Statement) -> Result<Vec<Resource>, String> {
    let subjects = statement.subject.into_iter();
    subjects
        .map(|subject| {
            let digest = subject.digest.get("sha256");
            let digest = digest.ok_or_else(|| format!("has no SHA-256 of {:?}", subject.name))?;
            resource(subject.name.clone(), "sha256", digest)
        })
        .collect()
}

fn resource(name: String, algorithm: &str, digest: &str) -> Result<Resource, String> {
    let parts = || name.split('/');
    if name.is_empty() || name.starts_with('/') || parts().any(|part| part == "..") {
        return Err(format!("names {name:?}, which is not a path in its tree"));
    }
    let known = Algorithm::of(algorithm);
    let algorithm = known.ok_or_else(|| {
        format!("has a {algorithm:?} of {name:?}; sha256, blake2b and blake3 are known here")
    })?;
    let bytes = Hex::decode(digest).filter(|bytes| bytes.len() == algorithm.len());
    let digest = bytes.ok_or_else(|| format!("has no {} of {name:?}", algorithm.name()))?;
    Ok(Resource { name, algorithm, digest })
}

/// What is signed of a payload: DSSE's encoding, which has its type and its length.
fn to_be_signed(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {PAYLOAD_TYPE} {} ", PAYLOAD_TYPE.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}

fn decode(text: &str) -> Option<Vec<u8>> {
    Base64::decode_vec(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of DSSE's own specification has another type; its form is the same.
    #[test]
    fn what_is_signed_has_its_type_and_length() {
        let message = to_be_signed(b"hello world");
        assert_eq!(message, b"DSSEv1 28 application/vnd.in-toto+json 11 hello world");
    }
}
