#!/bin/sh
# Writes the secrets of docker-compose.yml into a folder, those that are not there yet.
# Usage: docker/make-secrets.sh [FOLDER]
set -eu

folder=${1:-secrets}
# Containers with other user ids read the files; on the host the folder keeps others out.
mkdir -p "$folder"
chmod 0700 "$folder"

random() {
    # Hexadecimal, $1 bytes of it.
    od -An -v -tx1 -N"$1" /dev/urandom | tr -d ' \n'
}

write() {
    # The file $1 with the content of standard input; never a half-written one, never an old one changed.
    if [ -e "$folder/$1" ]; then
        cat >/dev/null
        return
    fi
    cat >"$folder/.$1"
    chmod 0444 "$folder/.$1"
    mv "$folder/.$1" "$folder/$1"
}

random 32 | write postgres_password
printf 'postgresql+psycopg://expunge:%s@postgres/expunge' "$(cat "$folder/postgres_password")" |
    write expunge_database_url

printf 'requirepass %s\n' "$(random 32)" | write redis.conf
printf 'redis://:%s@redis:6379/0' "$(sed -n 's/^requirepass //p' "$folder/redis.conf")" |
    write expunge_redis_url

# The administrator of the S3 server, whom only that server and its set-up know.
printf 'ROOT_ACCESS_KEY_ID=root-%s\nROOT_SECRET_ACCESS_KEY=%s\n' "$(random 8)" "$(random 32)" |
    write objects_root
# The user of the service, who owns one bucket.
printf 'expunge-%s' "$(random 8)" | write expunge_s3_access_key
random 32 | write expunge_s3_secret_key

# For Prometheus, which reads the api's /metrics with it.
random 32 | write expunge_metrics_token
