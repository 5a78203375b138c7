# A producer in Python: tells an MCP server who its user is, and calls a tool in that user's name.
#
#   apt install python3-jwcrypto    # or: pip install jwcrypto
#   python3 producer.py http://127.0.0.1:3000/mcp
import json, sys, time
from http.client import HTTPConnection, HTTPSConnection  # unlike urllib they follow no redirect to somebody else's key
from urllib.parse import urlsplit
from jwcrypto import jwk, jwt

url = urlsplit(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:3000/mcp")
if url.scheme != "https" and url.hostname not in ("localhost", "127.0.0.1", "::1"):
    sys.exit("error: use https: whoever can swap the key reads the claims")
server = (HTTPSConnection if url.scheme == "https" else HTTPConnection)(url.netloc, timeout=10)


def ask(method, path, body=None, headers={}):
    server.request(method, path, body, headers)
    response = server.getresponse()
    text = response.read().decode()
    return text if response.status == 200 else sys.exit(f"error: {method} {path}: HTTP {response.status} {text}")


# 1. The server's public key. A long-running producer asks again after 300 s: keys rotate.
key = jwk.JWK(**json.loads(ask("GET", "/.well-known/jwks.json"))["keys"][0])

# 2. The claims about the user of this request, readable by that server alone.
header = {"alg": key["alg"], "enc": "A256GCM", "kid": key["kid"]}
token = jwt.JWT(header, {"sub": "user-1", "name": "Ada", "exp": int(time.time()) + 300})
token.make_encrypted_token(key)

# 3. An ordinary MCP call, with the token in the one header.
call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami"}}
headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
print(ask("POST", url.path, json.dumps(call), {**headers, "Authorization": f"Bearer {token.serialize()}"}))
