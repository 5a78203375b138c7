# Reads a list of jobs from standard input and prints the list of results; support/producers.ts says what a job is.
import json
import sys

from jwcrypto import jwe, jwk, jwt


def perform(job):
    key = jwk.JWK(**job["key"])
    if "open" in job:
        opened = jwe.JWE()
        opened.deserialize(job["open"], key)
        return opened.payload.decode()
    content = job["claims"]
    if "sign" in job:
        signed = jwt.JWT(header=job["sign"]["header"], claims=content)
        signed.make_signed_token(jwk.JWK(**job["sign"]["key"]))
        content = signed.serialize()
    if "careless" in job:
        token = jwe.JWE(json.dumps(content), json.dumps(job["header"]), recipient=key)
        return token.serialize()  # not serialize(compact=True)
    token = jwt.JWT(header=job["header"], claims=content)
    token.make_encrypted_token(key)
    return token.serialize()


print(json.dumps([perform(job) for job in json.load(sys.stdin)]))
