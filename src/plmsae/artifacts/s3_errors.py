"""What can go wrong with an S3 store, in words: who can do something about it, and what."""

from __future__ import annotations

from plmsae.errors import PlmsaeError, TryAgainError, UserError

_NO_BUCKET = {"NoSuchBucket"}
_NO_OBJECT = {"NoSuchKey", "404", "NotFound"}
_KEYS_REFUSED = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId", "InvalidToken", "ExpiredToken"}
_BUSY = {"SlowDown", "ServiceUnavailable", "InternalError", "RequestTimeout", "Throttling", "ThrottlingException"}
_ELSEWHERE = {"PermanentRedirect", "AuthorizationHeaderMalformed", "301", "IllegalLocationConstraintException"}


class NoSuchObjectError(UserError):
    """The bucket has no object of that key."""


def translate(error: Exception, action: str, uri: str | None, endpoint: str) -> PlmsaeError:
    """The error for a user.

    Args:
        error: What boto3 or botocore raised.
        action: `read`, `write`, `list` or `reach`.
        uri: Address of the object or prefix, if one is concerned.
        endpoint: The endpoint, for the message.

    Returns:
        A `TryAgainError` where waiting helps, else a `UserError`. Its text holds no key and no secret: of the server's
        answer only the code is shown.
    """
    from botocore import exceptions as known

    shown = uri or endpoint
    if isinstance(error, known.ClientError):
        return _refused(error, action, shown, endpoint)
    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError | known.CredentialRetrievalError):
        return UserError(
            f"there are no (complete) credentials to {action} '{shown}'",
            where=endpoint,
            fix="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role",
        )
    if isinstance(error, known.ProfileNotFound | known.ConfigParseError | known.ConfigNotFound):
        return UserError("the AWS configuration cannot be used", where=_first_line(error), fix="correct AWS_PROFILE")
    if isinstance(error, known.SSLError):
        return UserError(
            f"no secure connection to '{endpoint}': {type(error).__name__}",
            where=_first_line(error),
            fix="correct the certificate (AWS_CA_BUNDLE), or write http:// for a server without one",
        )
    if isinstance(error, known.HTTPClientError | known.ConnectionError):
        return TryAgainError(
            f"the S3 store at '{endpoint}' cannot be reached",
            where=shown,
            fix="check AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL and that the server is up, then run again",
        )
    if isinstance(error, known.ParamValidationError):
        return UserError(f"'{shown}' is not a valid address", where=endpoint, fix="correct bucket and key")
    return TryAgainError(
        f"the S3 store at '{endpoint}' failed to {action} '{shown}' ({type(error).__name__})", fix="run again"
    )


def _refused(error: Exception, action: str, shown: str, endpoint: str) -> PlmsaeError:
    """The error for an answer of the server that is not a success."""
    response = error.response  # type: ignore[attr-defined]
    code = str(response.get("Error", {}).get("Code", ""))
    status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    on_bucket = getattr(error, "operation_name", "") in ("HeadBucket", "ListObjectsV2")
    bucket = shown.removeprefix("s3://").partition("/")[0]
    if code in _NO_BUCKET or (on_bucket and status == 404):
        return UserError(
            f"bucket '{bucket}' does not exist", where=endpoint, fix="correct the name, or create the bucket"
        )
    if code in _NO_OBJECT:
        return NoSuchObjectError(f"object '{shown}' does not exist", where=endpoint, fix="correct the address")
    if code in _KEYS_REFUSED:
        return UserError(
            f"no permission to {action} '{shown}': the store does not accept the credentials ({code})",
            where=endpoint,
            fix="correct AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN",
        )
    if status == 412:
        return TryAgainError(f"'{shown}' was replaced while it was read", where=endpoint, fix="run again")
    if status == 403:
        return UserError(
            f"no permission to {action} '{shown}'",
            where=endpoint,
            fix="ask for s3:GetObject, s3:PutObject and s3:ListBucket on the bucket, or use other credentials",
        )
    if code in _ELSEWHERE:
        return UserError(
            f"bucket '{bucket}' is in another region", where=endpoint, fix="set AWS_DEFAULT_REGION to its region"
        )
    if code in _BUSY or status >= 500 or status == 429:
        return TryAgainError(f"the S3 store at '{endpoint}' is busy ({code})", where=shown, fix="run again later")
    return UserError(
        f"the S3 store refuses to {action} '{shown}' ({code})", where=endpoint, fix="check bucket, key and permissions"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
