# Reads a list of jobs from standard input and prints the list of results; support/producers.ts says what a job is.
import json
import sys

from authlib.jose import JsonWebEncryption, JsonWebKey, JsonWebSignature, JsonWebToken
from authlib.jose.rfc8037 import register_jws_rfc8037

register_jws_rfc8037(JsonWebSignature)  # EdDSA
encryption = JsonWebEncryption()
jwt = JsonWebToken(["RSA-OAEP", "RSA-OAEP-256", "A256GCM", "A128CBC-HS256", "DEF"])


def perform(job):
    key = JsonWebKey.import_key(job["key"])
    if "open" in job:
        return encryption.deserialize_compact(job["open"], key)["payload"].decode()
    if "sign" in job:
        text = json.dumps(job["claims"])
        signing_key = JsonWebKey.import_key(job["sign"]["key"])
        inner = JsonWebSignature().serialize_compact(job["sign"]["header"], text, signing_key)
        return encryption.serialize_compact(job["header"], inner, key).decode()
    return jwt.encode(job["header"], job["claims"], key).decode()


print(json.dumps([perform(job) for job in json.load(sys.stdin)]))
