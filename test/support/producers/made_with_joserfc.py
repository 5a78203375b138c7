# Reads a list of jobs from standard input and prints the list of results; support/producers.ts says what a job is.
import json
import sys

from joserfc import jwe, jwk, jwt

SIGNING = ["RS256", "PS256", "ES256", "EdDSA"]
ENCRYPTION = ["RSA-OAEP", "RSA-OAEP-256", "A256GCM", "A128CBC-HS256", "DEF"]


def perform(job):
    key = jwk.import_key(job["key"])
    if "open" in job:
        return jwe.decrypt_compact(job["open"], key, algorithms=ENCRYPTION).plaintext.decode()
    if "sign" in job:
        inner = jwt.encode(job["sign"]["header"], job["claims"], jwk.import_key(job["sign"]["key"]), algorithms=SIGNING)
        return jwe.encrypt_compact(job["header"], inner, key, algorithms=ENCRYPTION)
    return jwt.encode(job["header"], job["claims"], key, registry=jwe.JWERegistry(algorithms=ENCRYPTION))


print(json.dumps([perform(job) for job in json.load(sys.stdin)]))
