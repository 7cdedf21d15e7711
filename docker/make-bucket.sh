#!/bin/sh
# Gives the service's user its bucket on the S3 server of docker-compose.yml; run again after a change of secrets.
set -eu

bucket=expunge
set -a
# shellcheck source=/dev/null
. /run/secrets/objects_root
set +a
export ADMIN_ACCESS_KEY_ID="$ROOT_ACCESS_KEY_ID" ADMIN_SECRET_ACCESS_KEY="$ROOT_SECRET_ACCESS_KEY"
access=$(cat /run/secrets/expunge_s3_access_key)
secret=$(cat /run/secrets/expunge_s3_secret_key)

# The role `user` may not make buckets, nor touch those of others.
versitygw admin create-user --access "$access" --secret "$secret" --role user ||
    versitygw admin update-user --access "$access" --secret "$secret"
if versitygw admin list-buckets | grep -q "^$bucket[[:space:]]"; then
    versitygw admin change-bucket-owner --bucket "$bucket" --owner "$access"
else
    versitygw admin create-bucket --bucket "$bucket" --owner "$access"
fi
