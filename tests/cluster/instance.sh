#!/bin/bash
# A pretend cloud instance: a changeable copy of this machine's file system with a user ubuntu and an sshd, in namespaces
# of its own. Whoever runs it has made them: unshare --mount --pid --uts --ipc --net --fork --kill-child.
# usage: instance.sh NAME ADDRESS STATE PYTHON...   STATE: a folder with key.pub and shared/; PYTHON: files it must reach
# Says "unshared" and waits for a line, within which its eth0 is made; sshd says when it listens.
set -e
name=$1 address=$2 state=$3; shift 3
echo unshared
read -r _
mount --make-rprivate /
here=$state/$name; mkdir -p "$here"
# A tmpfs: what the instance writes ends with it.
mount -t tmpfs -o size=3g tmpfs "$here"
mkdir "$here/upper" "$here/work" "$here/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$here/upper,workdir=$here/work" "$here/root"
root=$here/root
# Not the machine's: others write there meanwhile, and Ray would find their sessions.
mount -t tmpfs -o size=1500m,mode=1777 tmpfs "$root/tmp"
# What lies on file systems of its own, or in /tmp, is not in there.
for path in "$@"; do
    if [ ! -e "$root$path" ]; then mkdir -p "$root$path"; mount --bind "$path" "$root$path"; fi
    while [ "$path" != / ]; do path=$(dirname "$path"); chmod o+rx "$root$path"; done
done
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=1500m,mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/run/sshd" "$root/lambda/nfs/rollouts"
mount --bind "$state/shared" "$root/lambda/nfs/rollouts"

hostname "$name"
echo "127.0.0.1 localhost $name" > "$root/etc/hosts"
ip link set lo up
ip address add "$address/24" dev eth0
ip link set eth0 up
ip route add default via 10.77.0.1

grep -q ^sshd: "$root/etc/passwd" || echo 'sshd:x:120:65534::/run/sshd:/usr/sbin/nologin' >> "$root/etc/passwd"
# A uid that no image has: where two names share one, ssh looks for the wrong home.
echo 'ubuntu:x:20077:20077::/home/ubuntu:/bin/bash' >> "$root/etc/passwd"
echo 'ubuntu:x:20077:' >> "$root/etc/group"
echo 'ubuntu:*:19000:0:99999:7:::' >> "$root/etc/shadow"
rm -rf "$root/home/ubuntu"; mkdir -p "$root/home/ubuntu/.ssh"
cp "$state/key.pub" "$root/home/ubuntu/.ssh/authorized_keys"
touch "$root/home/ubuntu/.bashrc"
chmod 700 "$root/home/ubuntu/.ssh"; chmod 600 "$root/home/ubuntu/.ssh/authorized_keys"
chown -R 20077:20077 "$root/home/ubuntu"

mkdir "$root/etc/pretend"
ssh-keygen -q -t ed25519 -N '' -f "$root/etc/pretend/host_key"
cat > "$root/etc/pretend/sshd_config" <<CONFIG
ListenAddress $address
HostKey /etc/pretend/host_key
UsePAM no
PasswordAuthentication no
PidFile none
MaxStartups 100
MaxSessions 100
CONFIG
exec chroot "$root" /usr/sbin/sshd -D -e -f /etc/pretend/sshd_config
