//! Signatures as [cosign](https://docs.sigstore.dev/cosign/) makes them: ECDSA on P-256 with SHA-256 over a payload of
//! JSON, the "simple signing" of container images, which names the digest of an OCI manifest.
//!
//! What the payload binds is the content, in one of two ways:
//!
//! * the claim [`CLAIM`] among the optional ones, `"daxfs-content": "blake3:HASH"`. So a registry's signature of
//!   whatever artifact has the image in it counts: `cosign sign --key KEY -a daxfs-content=blake3:HASH
//!   REGISTRY/NAME@sha256:...`;
//! * without the claim the digest of the manifest, which is then that of [`manifest`]: an OCI artifact with the
//!   [statement](super::statement) as its one layer, the same bytes wherever they are computed.
//!
//! What [`layout`] makes has both, so `openssl dgst -sha256 -verify` takes the payload, and cosign the layout.
//!
//! In texts a signature is one line: an OCI descriptor of the payload, with the payload in `data` and the signature
//! among the annotations, as a manifest with signatures has it.

mod layout;

use base64ct::{Base64, Encoding};
use dmabuf::Hex;
use p256::ecdsa::signature::hazmat::PrehashVerifier;
use p256::ecdsa::{DerSignature, VerifyingKey};
use p256::pkcs8::DecodePublicKey;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

use super::SignatureError;
use crate::ContentHash;
use crate::text::Escaped;

pub(super) use layout::read_layout;
pub use layout::{MANIFEST_TYPE, is_part, layout, manifest, replaceable_blobs};

/// Media type of a payload.
pub const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Annotation with the signature of a payload.
pub const ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// Claim with the content hash of an image.
pub const CLAIM: &str = "daxfs-content";

/// What a payload says that it is.
const SIGNATURE_TYPE: &str = "cosign container image signature";

/// A public key on P-256.
#[derive(Clone)]
pub(super) struct Key(VerifyingKey);

impl Key {
    /// Of a PEM block; `None` when it is another kind of key, or damaged.
    #[allow(clippy::unnecessary_wraps, reason = "without the feature every key is an error")]
    pub(super) fn from_pem(pem: &str, _what: &str) -> Result<Option<Self>, SignatureError> {
        Ok(VerifyingKey::from_public_key_pem(pem).ok().map(Self))
    }

    /// Whether it made this signature, in DER, of what has this SHA-256.
    pub(super) fn has_signed(&self, digest: &[u8; 32], signature: &[u8]) -> bool {
        DerSignature::try_from(signature)
            .is_ok_and(|signature| self.0.verify_prehash(digest, &signature).is_ok())
    }
}

/// A descriptor of OCI, as far as it is needed.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
}

impl Descriptor {
    /// Of these bytes.
    fn new(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: digest(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            artifact_type: None,
            data: None,
        }
    }

    fn annotated(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Whether it describes these bytes.
    fn is_of(&self, bytes: &[u8]) -> bool {
        self.size == bytes.len() as u64 && self.digest == digest(bytes)
    }
}

#[derive(Serialize, Deserialize)]
struct Payload {
    critical: Critical,
    #[serde(default)]
    optional: Option<Optional>,
}

#[derive(Serialize, Deserialize)]
struct Critical {
    identity: Identity,
    image: Image,
    r#type: String,
}

#[derive(Serialize, Deserialize)]
struct Identity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Serialize, Deserialize)]
struct Image {
    // cosign's own specification writes it with a capital, too.
    #[serde(rename = "docker-manifest-digest", alias = "Docker-manifest-digest")]
    digest: String,
}

#[derive(Serialize, Deserialize)]
struct Optional {
    #[serde(rename = "daxfs-content", default, skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(flatten)]
    others: serde_json::Map<String, serde_json::Value>,
}

/// What is to be signed of a content: compact JSON. `reference` is the name of the image, for people; nothing is bound
/// by it. `time` is in seconds since 1970.
pub fn payload(content: &ContentHash, reference: &str, time: u64) -> Vec<u8> {
    let others = [("creator", "daxfs-pack".into()), ("timestamp", time.into())];
    let payload = Payload {
        critical: Critical {
            identity: Identity { reference: reference.to_owned() },
            image: Image { digest: digest(manifest(content).as_bytes()) },
            r#type: SIGNATURE_TYPE.to_owned(),
        },
        optional: Some(Optional {
            content: Some(content.to_string()),
            others: others.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }),
    };
    json(&payload)
}

/// The line that stands for a signature, in DER, of a payload.
pub fn line(payload: &[u8], signature: &[u8]) -> String {
    let mut descriptor = signed_layer(payload, signature);
    descriptor.data = Some(Base64::encode_string(payload));
    let mut line = String::from_utf8(json(&descriptor)).unwrap_or_default();
    line.push('\n');
    line
}

/// The layer that a payload is in a manifest of signatures.
fn signed_layer(payload: &[u8], signature: &[u8]) -> Descriptor {
    Descriptor::new(PAYLOAD_TYPE, payload).annotated(ANNOTATION, Base64::encode_string(signature))
}

/// JSON of a structure of texts and numbers, which has no way to fail.
fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", Hex(&Sha256::digest(bytes)))
}

/// A payload and its signature, which was not checked yet.
pub(super) struct Signed {
    bytes: Vec<u8>,
    signature: Vec<u8>,
    /// What it says of the image.
    bound: Bound,
    comment: String,
}

/// What stands for the content in a payload.
enum Bound {
    Content(ContentHash),
    Manifest(String),
}

impl Signed {
    /// Reads a line of [`line`], or of whoever else writes descriptors.
    pub(super) fn parse(line: &str) -> Result<Self, SignatureError> {
        let refuse = |why| SignatureError::NotASignature { why };
        let descriptor: Descriptor = serde_json::from_str(line)
            .map_err(|_| refuse("a line of JSON in it is no descriptor of OCI with a digest and a size"))?;
        let data = descriptor.data.as_deref();
        let bytes = data.and_then(|data| Base64::decode_vec(data).ok());
        let bytes = bytes.filter(|bytes| descriptor.is_of(bytes));
        Self::of(
            &descriptor,
            bytes.ok_or_else(|| refuse("the data of its descriptor are not what that names"))?,
        )
    }

    /// Of a layer and its bytes, which are the ones that it names.
    fn of(layer: &Descriptor, bytes: Vec<u8>) -> Result<Self, SignatureError> {
        let refuse = |why| SignatureError::NotASignature { why };
        if layer.media_type != PAYLOAD_TYPE {
            return Err(refuse("the media type of its payload is not that of simple signing"));
        }
        let signature = layer.annotations.get(ANNOTATION).and_then(|text| Base64::decode_vec(text).ok());
        let signature = signature.ok_or_else(|| refuse("its payload has no annotation with a signature"))?;
        let payload: Payload = serde_json::from_slice(&bytes).map_err(|_| {
            refuse("its payload is no JSON of simple signing, with an identity, an image and a type")
        })?;
        if payload.critical.r#type != SIGNATURE_TYPE {
            return Err(refuse("the type of its payload is not \"cosign container image signature\""));
        }
        let mut comment = format!("reference:{}", Escaped(payload.critical.identity.reference.as_bytes()));
        let optional = payload.optional;
        for (key, value) in optional.iter().flat_map(|optional| &optional.others) {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            comment.push_str(&format!("\t{}:{}", Escaped(key.as_bytes()), Escaped(text.as_bytes())));
        }
        let bound = match optional.and_then(|optional| optional.content) {
            Some(claim) => {
                let content = claim.parse::<ContentHash>().ok();
                let content = content.ok_or_else(|| refuse("its claim daxfs-content is no content hash"))?;
                comment.push_str(&format!("\tdaxfs content {content}"));
                Bound::Content(content)
            }
            None => {
                let manifest = Escaped(payload.critical.image.digest.as_bytes());
                comment.push_str(&format!("\tmanifest {manifest}"));
                Bound::Manifest(payload.critical.image.digest)
            }
        };
        Ok(Self { bytes, signature, bound, comment })
    }

    /// It alone.
    pub(super) fn text(&self) -> String {
        line(&self.bytes, &self.signature)
    }

    /// Whether this key has made it.
    pub(super) fn is_by(&self, key: &Key) -> bool {
        key.has_signed(&Sha256::digest(&self.bytes).into(), &self.signature)
    }

    /// Whether it is one of this content.
    pub(super) fn is_of(&self, content: &ContentHash) -> bool {
        match &self.bound {
            Bound::Content(bound) => bound == content,
            Bound::Manifest(bound) => *bound == digest(manifest(content).as_bytes()),
        }
    }

    /// What it says beside.
    pub(super) fn comment(&self) -> &str {
        &self.comment
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
